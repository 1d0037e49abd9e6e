"""The study of images: averages of weights and Gaussian posteriors over networks trained from scratch."""
