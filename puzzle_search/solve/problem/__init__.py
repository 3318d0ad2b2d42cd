"""What is searched: items, measures, limits, scores."""
