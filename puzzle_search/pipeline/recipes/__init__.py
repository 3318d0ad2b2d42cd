"""What a run is asked: the recipe, its faults and reference, and what is proposed for a machine."""
