"""The recipe, its stages and the run directory."""
