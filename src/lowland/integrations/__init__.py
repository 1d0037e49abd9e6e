"""Edges to other libraries, each behind its own import."""
