"""Measure a profile through an installed vLLM."""
