"""The device that a child is for, by name: of a cost model, a profile or a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from puzzle_search.arch import ParentConfig
from puzzle_search.cost import Profile, Target, parse_dtype
from puzzle_search.cost.modelled.hardware import CostModel, find_cost_model
from puzzle_search.cost.modelled.target import modelled_target
from puzzle_search.cost.serving import ServingOptions
from puzzle_search.errors import InputError
from puzzle_search.solve.question.run_folder import run_at
from puzzle_search.solve.question.targets import profile_target

# What the costs of a subblock depend on besides its variant.
_SHAPES = (
    "hidden_size", "num_heads", "head_dim", "vocab_size", "tie_embeddings", "qkv_bias",
    "output_bias", "mlp_bias", "qk_norm", "sliding_window", "experts",
)  # fmt: skip


def find_target(
    gpu: str,
    config: ParentConfig,
    *,
    engine: str | None = None,
    dtype: str | None = None,
    tp: tuple[int, ...] = (1,),
    serving: ServingOptions | None = None,
) -> Target:
    """The target of a GPU's name (its cost model), of a profile folder or of a run directory.

    Args:
        gpu: name of a cost model, path of one, a profile folder, or a run directory. The profile of
            a run counts by the scalar that makes the run's own parent right.
        config: the parent.
        engine: of the cost model; by default the first one with the parent's own precision, if any.
        dtype: serving precision; by default the parent's own, as its config names it, or else the
            smallest from 8 bits up that the engine has.
        tp: TP degrees that are asked; see `profile_target` for a profile.
        serving: what is asked of serving; the rest is the engine's own.

    Raises:
        InputError: the GPU, engine or dtype is not known there, the profile is of another model, or
            none of the TP degrees divides the parent's query heads.
    """
    degrees = _degrees_of(config, tp)
    if (run := run_at(Path(gpu))) is not None:
        _check_shape(run.profile, gpu, config)
        return run.target(tp=degrees, serving=serving)
    if (Path(gpu) / "profile.yaml").exists():
        profile = Profile.from_folder(gpu)
        _check_shape(profile, gpu, config)
        return profile_target(profile, tp=degrees, serving=serving)
    model = CostModel.from_file(find_cost_model(gpu))
    own = _own_dtype(config)
    with_own = [name for name, constants in model.engines.items() if own in constants.dtypes]
    engine = engine or next(iter([*with_own, *model.engines]))
    known = model.engine(engine).dtypes
    dtype = dtype or (own if own in known else _smallest_dtype(known))
    return modelled_target(model, config, engine=engine, dtype=dtype, serving=serving)


def _check_shape(profile: Profile, gpu: str, config: ParentConfig) -> None:
    if any(getattr(profile.config, name) != getattr(config, name) for name in _SHAPES):
        raise InputError(
            f"{gpu} is a profile of {profile.config.name}, whose shape differs from {config.name}",
            remedy="profile this model, or name the model that was profiled",
        )


def _own_dtype(config: ParentConfig) -> str | None:
    """What the parent's weights are quantised in, where its config says so: it costs no quality."""
    found = config.raw.get("quantization_config")
    return found.get("quant_method") if isinstance(found, dict) else None


def _smallest_dtype(dtypes: Sequence[str]) -> str:
    """Of 8 bits or more where there is one: scores know nothing of what 4 bits cost in quality."""
    sizes = {name: parse_dtype(name).matrix_bytes for name in dtypes}
    return min(sizes, key=lambda name: (sizes[name] < 1, sizes[name]))


def _degrees_of(config: ParentConfig, tp: tuple[int, ...]) -> tuple[int, ...]:
    """The TP degrees that divide the parent's query heads; its KV heads are replicated."""
    possible = tuple(degree for degree in tp if config.num_heads % degree == 0)
    if not possible:
        raise InputError(
            f"TP {', '.join(map(str, tp))} does not divide the {config.num_heads} query heads of "
            f"{config.name}",
            remedy="use a degree that does, or --tp any",
        )
    return possible
