"""What is measured, and at which points."""
