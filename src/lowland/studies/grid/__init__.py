"""A grid study: cells of data set, model and seed, each run once, then judged together over seeds and over pairs."""
