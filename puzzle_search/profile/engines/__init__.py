"""Profiles measured through another engine, one folder each."""
