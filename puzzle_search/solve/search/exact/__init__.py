"""Settle the items that the relaxation could not rule out: programs and their solvers."""
