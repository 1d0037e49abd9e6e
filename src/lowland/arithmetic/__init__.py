"""Arithmetic over many tensors at once."""
