"""Children in the files of serving engines: planned, written whole, verified."""

from puzzle_search.export.export import TARGETS, plan_export, write_export
from puzzle_search.export.plan import ExportPlan
from puzzle_search.export.registration import register_transformers

__all__ = ["TARGETS", "ExportPlan", "plan_export", "register_transformers", "write_export"]
