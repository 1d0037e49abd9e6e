"""Whole experiments on real data, each from a configuration to a run folder."""
