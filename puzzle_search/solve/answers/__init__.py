"""What is made of a search: one answer, prices, a pool, a frontier, a diagnosis."""
