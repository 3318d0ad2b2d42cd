"""Costs computed from a hardware sheet and calibrated constants."""
