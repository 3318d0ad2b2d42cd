"""The published children that ship as specs have the parameters that were published."""

from __future__ import annotations

import pytest

from puzzle_search.arch import ArchitectureSpec, ParentConfig, architecture_parameters
from puzzle_search.resources import resource
from tests.arch.configs import CONFIGS

FOLDER = resource("examples", "llama-3.1-70b")


@pytest.mark.parametrize(
    ("name", "parent", "parameters"),
    [
        ("nemotron-51b", "Llama-3.1-70B", 51_501_015_040),
        ("nemotron-49b", "Llama-3.1-70B", 49_867_145_216),
        # Four of its blocks stand for 49 layers of the parent.
        ("nemotron-253b", "Llama-3.1-405B", 253_401_268_224),
    ],
)
def test_parameters(name: str, parent: str, parameters: int) -> None:
    config = ParentConfig.from_dict(CONFIGS[parent], name=parent.lower())
    spec = ArchitectureSpec.from_file(FOLDER / "children" / f"{name}.yaml")
    assert spec.num_layers == config.num_layers
    assert architecture_parameters(spec, config) == parameters
