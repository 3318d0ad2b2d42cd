"""The search and its proof."""
