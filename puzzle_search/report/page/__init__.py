"""The report that is looked at: one HTML page of a parent and its children, by itself. No torch."""
