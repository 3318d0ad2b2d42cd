"""The published children that ship as specs have the parameters that were published."""

from __future__ import annotations

import pytest

from puzzle_search.arch import ArchitectureSpec, ParentConfig, architecture_parameters
from puzzle_search.resources import resource

FOLDER = resource("examples", "llama-3.1-70b")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("nemotron-51b", 51_501_015_040), ("nemotron-49b", 49_867_145_216)],
)
def test_parameters(name: str, parameters: int) -> None:
    config = ParentConfig.from_file(FOLDER / "config.json", name="llama-3.1-70b")
    spec = ArchitectureSpec.from_file(FOLDER / "children" / f"{name}.yaml")
    spec.check_fits(config)
    assert architecture_parameters(spec, config) == parameters
