"""What a person asks, by name, and the answer as it is told."""
