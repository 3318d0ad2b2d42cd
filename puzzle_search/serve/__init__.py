"""An OpenAI-compatible endpoint of this package's runtime, or an installed engine started.

Its modules are imported one by one: starting an engine needs no web framework.
"""
