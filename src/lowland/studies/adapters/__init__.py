"""What the studies of adapters share."""
