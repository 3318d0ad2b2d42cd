"""Costs read from a profile."""
