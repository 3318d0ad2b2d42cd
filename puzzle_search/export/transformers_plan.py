"""A child as a folder that transformers loads, with the model class in it.

A child whose blocks are all alike is written as a model of its parent's own type, which needs no
class of ours.
"""

from __future__ import annotations

import math
from typing import Any

from puzzle_search.arch import ArchitectureSpec, Mlp, ParentConfig
from puzzle_search.arch.slots import in_blocks, parts_of, uniform_sizes
from puzzle_search.arch.variants import Shape
from puzzle_search.checkpoint import CheckpointReader, child_config
from puzzle_search.checkpoint.child import MODEL_MODULE, OWN_TYPE
from puzzle_search.checkpoint.names import all_names
from puzzle_search.export.decilm_plan import TYPES, check_type, plan_decilm, unfused
from puzzle_search.export.plan import ExportPlan, PlannedTensor
from puzzle_search.solve.problem.portability import check_exportable

ENGINE = "transformers"
# Of what `child_config` writes, what belongs to the parent and differs by block.
_OF_PARENT = (
    "attention_bias",
    "intermediate_size",
    "mlp_bias",
    "num_key_value_heads",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
)


def plan_transformers(
    config: ParentConfig, spec: ArchitectureSpec, reader: CheckpointReader, dtype: str
) -> ExportPlan:
    """Plan the folder of a parent or child.

    Raises:
        InputError: the type is not known, or the model is not one of the class in the folder.
    """
    check_type(ENGINE, dtype)
    check_exportable(ENGINE, spec, config)
    if uniform_sizes(in_blocks(parts_of(spec), linear_as="ffn")):
        return plan_decilm(ENGINE, config, spec, reader, dtype)
    return ExportPlan(
        engine=ENGINE,
        architecture=OWN_TYPE,
        blocks=len(spec.blocks),
        tensors=tuple(
            _read(reader, name, shape, dtype) for name, shape in all_names(config, spec).items()
        ),
        forms=(),
        notes=("its class is in the folder: load it with trust_remote_code=True",),
        header=_header(config, spec, dtype),
    )


def _read(reader: CheckpointReader, name: str, shape: Shape, dtype: str) -> PlannedTensor:
    return PlannedTensor(
        name=name,
        shape=shape,
        dtype=dtype,
        bytes=math.prod(shape) * TYPES[dtype].itemsize,
        source=name,
        make=lambda: reader.tensor(name, shape),
    )


def _header(config: ParentConfig, spec: ArchitectureSpec, dtype: str) -> dict[str, Any]:
    given = child_config(config, spec, dtype=str(TYPES[dtype]).removeprefix("torch."))
    kept = {key: value for key, value in given.items() if key not in _OF_PARENT}
    for entry, block in zip(kept["block_configs"], spec.blocks, strict=True):
        width = block.ffn_variant
        entry["ffn"].pop("ffn_mult")
        entry["ffn"]["intermediate_size"] = (
            width.intermediate_size if isinstance(width, Mlp) else None
        )
    return kept | {
        "architectures": ["PuzzleSearchForCausalLM"],
        "model_type": OWN_TYPE,
        "auto_map": {
            "AutoConfig": f"{MODEL_MODULE}.PuzzleSearchConfig",
            "AutoModelForCausalLM": f"{MODEL_MODULE}.PuzzleSearchForCausalLM",
        },
        "puzzle_search": kept["puzzle_search"] | {"parent_config": unfused(config)},
        "tie_word_embeddings": config.tie_embeddings,
        "sliding_window": config.sliding_window,
        "pad_token_id": config.raw.get("pad_token_id"),
    }
