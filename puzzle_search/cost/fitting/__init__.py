"""From measurements to the constants of a cost model."""
