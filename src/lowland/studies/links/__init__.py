"""Link prediction on knowledge graphs: averages of the weights along one training run, judged by filtered ranks."""
