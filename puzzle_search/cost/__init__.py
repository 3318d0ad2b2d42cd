"""What an architecture costs on a GPU: memory, latency and throughput. No torch."""

from puzzle_search.cost.measured.profile import Profile
from puzzle_search.cost.measured.profile_rows import GroupRow, LatencyRow, MemoryRow
from puzzle_search.cost.memory import Dtype, parse_dtype
from puzzle_search.cost.pricing import build_cost_table
from puzzle_search.cost.scenario import Scenario
from puzzle_search.cost.table import CostTable, OperatingPoint, ScenarioCost, SubblockCosts
from puzzle_search.cost.target import Target

__all__ = [
    "CostTable",
    "Dtype",
    "GroupRow",
    "LatencyRow",
    "MemoryRow",
    "OperatingPoint",
    "Profile",
    "Scenario",
    "ScenarioCost",
    "SubblockCosts",
    "Target",
    "build_cost_table",
    "parse_dtype",
]
