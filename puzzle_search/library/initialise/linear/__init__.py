"""A matrix in place of a subblock: one file a method."""
