"""Global knowledge distillation (GKD): the whole child learns from the whole parent."""

from puzzle_search.distill.distill import distill, kept_state
from puzzle_search.distill.settings import DistillSettings

__all__ = ["DistillSettings", "distill", "kept_state"]
