"""Find, build and run the best child of a language model for a given GPU and workload."""

__version__ = "0.1.0"
