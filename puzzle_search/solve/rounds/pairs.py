"""A cheaper judge for rounds: it measures pairs of the child's own blocks, and infers the rest.

What a replacement does to a child is its own damage and its interactions with the child's other
blocks. Interactions are measured between blocks that a child really has, two at a time in the
parent; those of other replacements are taken to grow with the product of their damages, by one
factor that is fitted to the measured ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from puzzle_search.arch import ArchitectureSpec, BlockChoice, ParentConfig, Replacement
from puzzle_search.solve.problem.problem import Problem
from puzzle_search.solve.rounds.rounds import Judge


class PairJudge:
    """Judges children by measuring them, and replacements around them by pairs.

    Args:
        judge: measures.
        problem: its damages are those of single blocks.
        config: the parent.

    Attributes:
        pairs: damage of two blocks together above the sum of theirs, by blocks in order.
    """

    def __init__(self, judge: Judge, problem: Problem, config: ParentConfig) -> None:
        self.pairs: dict[tuple[Replacement, Replacement], float] = {}
        self._judge = judge
        self._config = config
        self._single: dict[Replacement, float] = dict(
            zip(problem.replacements, problem.damage.tolist(), strict=True)
        )
        self._measured: dict[tuple[BlockChoice, ...], float] = {}

    def measure(self, spec: ArchitectureSpec) -> float:
        """Real damage of a child."""
        if spec.blocks not in self._measured:
            self._measured[spec.blocks] = self._judge.measure(spec)
        return self._measured[spec.blocks]

    def around(
        self, spec: ArchitectureSpec, replacements: Sequence[Replacement]
    ) -> Mapping[Replacement, float]:
        """Inferred damage of the child with one more block replaced."""
        blocks = [block.replacement for block in spec.blocks]
        self._measure_pairs([block for block in blocks if self._single[block]])
        products = {pair: self._single[pair[0]] * self._single[pair[1]] for pair in self.pairs}
        factor = sum(self.pairs.values()) / (sum(products.values()) or 1.0)

        def between(one: Replacement, other: Replacement) -> float:
            inferred = factor * self._single[one] * self._single[other]
            return self.pairs.get((min(one, other), max(one, other)), inferred)

        def damage(chosen: Sequence[Replacement]) -> float:
            alone = sum(self._single[block] for block in chosen)
            return alone + sum(between(*pair) for pair in itertools.combinations(chosen, 2))

        child, inferred = self.measure(spec), damage(blocks)
        return {
            replacement: child - inferred + damage(_replaced(blocks, replacement))
            for replacement in replacements
        }

    def _measure_pairs(self, blocks: Sequence[Replacement]) -> None:
        """Measure the pairs of these blocks that are not known."""
        for one in blocks:
            others = [o for o in blocks if o > one and (one, o) not in self.pairs]
            if not others:
                continue
            alone = _with_one(one, self._config)
            for other, both in self._judge.around(alone, others).items():
                self.pairs[one, other] = both - self._single[one] - self._single[other]


def _replaced(blocks: Sequence[Replacement], replacement: Replacement) -> list[Replacement]:
    first, last = replacement[:2]
    return [*(b for b in blocks if b[1] < first or b[0] > last), replacement]


def _with_one(block: Replacement, config: ParentConfig) -> ArchitectureSpec:
    """The parent with one block replaced."""
    first, last, attention, ffn = block
    blocks = ArchitectureSpec.identity(config).blocks
    chosen = BlockChoice(attention=attention, ffn=ffn, layers=tuple(range(first, last + 1)))
    return ArchitectureSpec(
        parent=config.name, blocks=(*blocks[:first], chosen, *blocks[last + 1 :])
    )
