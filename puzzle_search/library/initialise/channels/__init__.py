"""FFNs of fewer channels: one file a method."""
