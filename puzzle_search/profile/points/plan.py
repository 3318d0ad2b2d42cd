"""What a profile holds, what of it is the same to measure, and what fits into memory together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from puzzle_search.arch import (
    Gqa,
    NoOp,
    ParentConfig,
    SearchSpace,
    Subblock,
    Variant,
    parse_variant,
)
from puzzle_search.cost.measured.profile_rows import EMBEDDING, HEAD, STEP, Part
from puzzle_search.cost.memory import Dtype, kv_bytes_per_token
from puzzle_search.errors import InputError
from puzzle_search.profile.points.grid import ProfileGrid
from puzzle_search.profile.points.series import Series, outside_series, step_series, subblock_series
from puzzle_search.profile.points.step_inputs import StepInputs
from puzzle_search.profile.points.subjects import OutsideStack, SubblockStack

# Shares of a device's memory.
_WEIGHTS_SHARE = 0.5  # for stacks that are measured in turn
_KV_SHARE = 0.3  # for keys and values
# Decode steps whose caches would not fit if so many layers kept the parent's attention are not
# asked for.
_LAYERS_WITH_CACHE = 0.25


@dataclass(frozen=True, kw_only=True)
class ProfileTarget:
    """Something that a profile has rows of.

    Attributes:
        subblock: attention, ffn or outside.
        variant: as rows name it.
        tp: tensor-parallel degree.
        series: where its latencies come from; targets of the same shapes share them.
        contained: what is measured within them and has rows of its own.
    """

    subblock: Part
    variant: str
    tp: int
    series: Sequence[Series]
    contained: Sequence[Series] = ()


class ProfilePlan:
    """Targets of a profile.

    Args:
        config: the parent.
        space: whose variants are measured.
        inputs: on the device.
        dtype: serving precision.
        grid: what to cover.

    Attributes:
        targets: what has rows.
        left_out: decode steps of the grid that are not asked, and why.

    Raises:
        InputError: a variant cannot be run in the dtype or at a TP degree.
    """

    def __init__(
        self,
        config: ParentConfig,
        space: SearchSpace,
        inputs: StepInputs,
        dtype: Dtype,
        grid: ProfileGrid,
    ) -> None:
        self._config, self._inputs, self._dtype, self._grid = config, inputs, dtype, grid
        self._by_key: dict[str, list[Series]] = {}
        self.targets: list[ProfileTarget] = []
        self.left_out: list[dict[str, str]] = []
        subblocks: tuple[Subblock, Subblock] = ("attention", "ffn")
        for tp in grid.tp:
            for subblock in subblocks:
                for name in space.all_variants(subblock):
                    variant = parse_variant(subblock, name)
                    if variant.weights:
                        raise InputError(
                            f"{subblock} {name}: torch has no products in {variant.weights} here",
                            remedy="profile with --engine llama.cpp, or leave it out of the space",
                        )
                    if not isinstance(variant, NoOp):
                        series = self._subblock_series(variant, tp)
                        self.targets.append(
                            ProfileTarget(subblock=subblock, variant=name, tp=tp, series=series)
                        )
            self._add_outside(tp)

    @property
    def series(self) -> list[Series]:
        """All series, each once."""
        return [one for series in self._by_key.values() for one in series]

    def targets_of(self, portion: Sequence[Series]) -> list[ProfileTarget]:
        """Targets whose series these are."""
        here = {id(one) for one in portion}
        return [target for target in self.targets if id(target.series[0]) in here]

    def portions(self, parts: int = 1) -> list[list[Series]]:
        """Series in parts whose weights fit into memory together, about ``parts`` or more."""
        sizes = [series[0].subject.weight_bytes for series in self._by_key.values()]
        fits = _WEIGHTS_SHARE * self._inputs.device.memory_limit_bytes
        limit = min(fits, sum(sizes) / parts) if parts > 1 else fits
        portions: list[list[Series]] = [[]]
        taken = 0
        for series in self._by_key.values():
            size = series[0].subject.weight_bytes
            if portions[-1] and taken + size > limit:
                portions.append([])
                taken = 0
            portions[-1] += series
            taken += size
        return portions

    def _subblock_series(self, variant: Variant, tp: int) -> list[Series]:
        stack = SubblockStack(self._inputs, variant, tp)
        if stack.key not in self._by_key:
            kv_tokens = self._kv_tokens(stack, variant, tp)
            if (
                isinstance(variant, Gqa)
                and max(self._grid.batches) * max(self._grid.contexts) > kv_tokens
            ):
                self.left_out.append(
                    {
                        "point": f"{stack.name}: decode, batch x context above {kv_tokens}",
                        "why": "keys and values do not fit in memory",
                    }
                )
            self._by_key[stack.key] = subblock_series(
                stack, variant, self._config, self._grid, kv_tokens
            )
        return self._by_key[stack.key]

    def _add_outside(self, tp: int) -> None:
        """Embedding and head by their share of the vocabulary; the step of a whole engine."""
        whole, share = OutsideStack(self._inputs, 1), OutsideStack(self._inputs, tp)
        if whole.key not in self._by_key:
            self._by_key[whole.key] = [
                *outside_series(whole, self._grid),
                *step_series(whole, self._config, self._grid),
            ]
        if share.key not in self._by_key:
            self._by_key[share.key] = outside_series(share, self._grid)
        for part in (EMBEDDING, HEAD, STEP):
            of = self._by_key[(whole if part == STEP else share).key]
            self.targets.append(
                ProfileTarget(
                    subblock="outside",
                    variant=part,
                    tp=tp,
                    series=[one for one in of if one.part == part],
                    contained=[one for one in of if one.part != STEP] if part == STEP else (),
                )
            )

    def _kv_tokens(self, stack: SubblockStack, variant: Variant, tp: int) -> int:
        """Most tokens that the slots of a decode step shall hold."""
        if not isinstance(variant, Gqa):
            return 0
        limit = self._inputs.device.memory_limit_bytes
        parent = Gqa(self._config.num_kv_heads)
        of_model = kv_bytes_per_token(parent, self._config, self._dtype, tp) * max(
            1, round(_LAYERS_WITH_CACHE * self._config.num_layers)
        )
        of_stack = stack.caches * kv_bytes_per_token(variant, self._config, self._dtype, tp)
        return int(min(limit / of_model, _KV_SHARE * limit / of_stack))
