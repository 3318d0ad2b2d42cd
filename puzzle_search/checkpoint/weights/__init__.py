"""How numbers are stored: read from quantised checkpoints, rounded as engines do."""
