"""Which architectures stock serving engines compute, by the table of engine limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from puzzle_search.arch import ArchitectureSpec, BlockChoice, ParentConfig
from puzzle_search.arch.slots import in_blocks, parts_of, uniform_sizes
from puzzle_search.errors import InputError
from puzzle_search.solve.problem.engine_limits import ENGINES, FEATURES, Cell, Engine, Place, cell


def allows(engine: str, attention: str, ffn: str, layer: int, config: ParentConfig) -> bool:
    """Whether an engine computes a child with this block in place of this layer.

    A substitute form that ``puzzle-search export`` writes counts where it costs next to nothing;
    any other was not priced. Where the blocks of a parent's children cannot differ, its own block
    and none at all are allowed: such a child is exported as a model of the parent's own type.

    Raises:
        InputError: the engine is not known.
    """
    parents = (config.own("attention", layer), config.ffn)
    own = (attention, ffn) in (parents, ("no_op", "no_op"))
    alike = own and _engine(engine).exported
    return all(
        found.native == "right"
        or (found.form is not None and not found.form.weights)
        or (alike and found.alike and FEATURES[feature].of_parent)
        for feature, found in _met(engine, attention, ffn, layer == 0, config)
    )


def allows_as_built(
    engine: str, attention: str, ffn: str, layer: int, config: ParentConfig
) -> bool:
    """Whether an engine computes this block as it stands in a child's folder, without an export.

    Raises:
        InputError: the engine is not known.
    """
    met = _met(engine, attention, ffn, layer == 0, config)
    return _engine(engine).loads_built and all(found.native == "right" for _, found in met)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an engine makes of a whole child.

    Attributes:
        engine: its name.
        as_built: it computes the child's folder as it is.
        exported: it computes what ``puzzle-search export`` writes.
        reasons: what stands against an export, or where none is written, against the folder.
    """

    engine: str
    as_built: bool
    exported: bool
    reasons: tuple[str, ...]


def verdicts(spec: ArchitectureSpec, config: ParentConfig) -> list[Verdict]:
    """What every engine of the table makes of a child."""
    return [_verdict(engine, spec, config) for engine in ENGINES]


def check_exportable(engine: str, spec: ArchitectureSpec, config: ParentConfig) -> None:
    """Check that an engine computes what an export writes of a child.

    Raises:
        InputError: it does not; names the engine, the block and what is in the way.
    """
    reasons = _verdict(engine, spec, config).reasons
    if reasons:
        raise InputError(
            f"{engine} cannot compute this child of {config.name}: {'; '.join(reasons)}",
            remedy="keep to blocks that are all alike, or blocks left out whole, or serve it with "
            "'puzzle-search generate' or another engine (docs/architecture.md has the table)",
        )


def _verdict(engine: str, spec: ArchitectureSpec, config: ParentConfig) -> Verdict:
    parts = parts_of(spec)
    alike = uniform_sizes(in_blocks(parts, linear_as="attention")) is not None
    exported = _engine(engine).exported
    as_built = _engine(engine).loads_built
    against: dict[str, str] = {}
    for number, block in enumerate(spec.blocks):
        # What comes before the first subblock is no block to an engine.
        first = bool(parts) and number == parts[0].block
        for feature, found in _met(engine, block.attention, block.ffn, first, config):
            if found.native == "right":
                continue
            as_built = False
            of_parent = FEATURES[feature].of_parent
            if exported and (found.form or (alike and found.alike)):
                continue
            where = "" if of_parent else f" in block {number}"
            against.setdefault(feature, f"{FEATURES[feature].text}{where} ({found.native})")
    if _engine(engine).known == "run" and not any(_attends(block) for block in spec.blocks):
        as_built = False
        against["attention"] = "no attention in any block (refused)"
    return Verdict(
        engine=engine,
        as_built=as_built,
        exported=exported and not against,
        reasons=tuple(against.values()),
    )


def _attends(block: BlockChoice) -> bool:
    return block.attention_variant.kind == "gqa"


def _engine(name: str) -> Engine:
    if name not in ENGINES:
        raise InputError(f"engine {name!r} is not known", remedy=f"use one of {', '.join(ENGINES)}")
    return ENGINES[name]


def _met(
    engine: str, attention: str, ffn: str, first: bool, config: ParentConfig
) -> Iterator[tuple[str, Cell]]:
    """The features of a block and its parent, with what the engine does with each."""
    _engine(engine)
    block = BlockChoice(attention=attention, ffn=ffn, layers=(0,))
    place = Place(
        attention=block.attention_variant,
        ffn=block.ffn_variant,
        first=first,
        config=config,
    )
    for name, feature in FEATURES.items():
        if feature.applies(place):
            yield name, cell(engine, name)
