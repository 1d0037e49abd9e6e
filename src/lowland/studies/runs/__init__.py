"""What every study shares: its folder, settings and randomness."""
