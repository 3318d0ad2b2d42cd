"""The device under test: its clock, state, ceilings and memory."""
