"""Beyond additive scores: measure the child, score around it, solve again."""
