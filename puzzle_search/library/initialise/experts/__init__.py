"""FFNs of fewer experts: one file a method."""
