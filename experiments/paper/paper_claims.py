"""The paper's claims, each measured on a small parent and set beside the paper's own figures.

Paper: Puzzle, arXiv 2411.19146 (tables of section 8 and appendix; MMLU and MT-Bench on Llama).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from baselines import greedy, random_specs, uniform
from paper_lab import Lab
from paper_methods import fewest_layers_dropped, ways_to_choose
from paper_pairing import Paired
from scipy.stats import spearmanr

from puzzle_search.arch import SearchSpace
from puzzle_search.solve import Problem, ScoreTable, solve
from puzzle_search.solve.rounds.pairs import PairJudge

SPEEDUPS = (1.5, 2.17, 3.2)
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.45)
MIDDLE = SPEEDUPS[1]
CLAIMS = (
    "additive", "rounds", "search", "metric", "bld_tokens", "coupled", "gkd_losses", "preserved",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim with what was measured.

    Attributes:
        name: short, also the name of its plot.
        question: what is asked.
        paper: what the paper found.
        columns: of the rows.
        rows: what was measured here.
        verdict: whether it holds here, with the figures that decide.
    """

    name: str
    question: str
    paper: str
    columns: list[str]
    rows: list[list[Any]]
    verdict: str


class Claims:
    """The claims, on the children of one lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.library = lab.library()
        self.scores = lab.scores(self.library)

    def problem(self, speedup: float, **changes: Any) -> Problem:
        """Least damage at a multiple of the parent's throughput."""
        return self.lab.problem(speedup, **({"scores": self.scores} | changes))

    def additive(self) -> Claim:
        """Do sums of replace-1-block scores order whole architectures?"""
        judge = self.lab.judge(self.library)
        each = self.lab.settings.random_specs // len(BUDGETS)
        estimated, measured, budgets = [], [], []
        for budget in BUDGETS:
            problem = self.problem(1 / budget)
            for number, spec in enumerate(random_specs(problem, each)):
                estimated.append(problem.score(problem.selection(spec)))
                key = f"additive {budget} {number}"
                measured.append(self.lab.once(key, lambda s=spec: judge.measure(s)))
                budgets.append(budget)
        rows = []
        for budget in BUDGETS:
            mine = [n for n, found in enumerate(budgets) if found == budget]
            rows.append(
                [
                    budget,
                    len(mine),
                    float(np.median([estimated[n] for n in mine])),
                    float(np.median([measured[n] for n in mine])),
                    _rank([estimated[n] for n in mine], [measured[n] for n in mine]),
                ]
            )
        overall = _rank(estimated, measured)
        rows.append(
            ["all", len(measured), float(np.median(estimated)), float(np.median(measured)), overall]
        )
        return Claim(
            name="additive",
            question="Do sums of replace-1-block KL order random architectures by their real KL?",
            paper="assumed; the paper gives no correlation",
            columns=["cost of the parent's", "specs", "sum of scores", "real KL", "Spearman"],
            rows=rows,
            verdict=f"Spearman {overall:.3f} over {len(measured)} random specs (asked: 0.9)",
        )

    def rounds(self) -> Claim:
        """What re-scoring around the child buys."""
        rows: list[list[Any]] = []
        verdicts = []
        for share, name in ((0.0, "not trained"), (1.0, "trained")):
            library = self.lab.library(share)
            scores = self.lab.scores(library)
            gains = {}
            for budget in BUDGETS:
                row, gains[budget] = self.budget_rounds(budget, library, scores)
                rows.append([name, budget, *row])
            lower = sum(gain < 0 for gain in gains.values())
            deep = ", ".join(f"{gains[b]:+.0%} at {b}" for b in BUDGETS if b <= 0.6)
            verdicts.append(f"blocks {name}: lower at {lower} of {len(BUDGETS)} budgets, {deep}")
        return Claim(
            name="rounds",
            question="Does re-scoring around the child and solving again lower its real KL?",
            paper="no such step in the paper",
            columns=[
                "blocks", "cost of the parent's", "one-shot KL", "pairs KL", "rounds KL", "change",
                "greedy KL", "layers dropped KL", "best uniform KL", "pairs measured",
                "replacements scored", "children measured",
            ],
            rows=rows,
            verdict="; ".join(verdicts),
        )  # fmt: skip

    def budget_rounds(
        self, budget: float, library: Path, scores: ScoreTable
    ) -> tuple[list[Any], float]:
        """One-shot, pairs, rounds and other ways at one budget; and what rounds change."""
        lab = self.lab
        problem, judge = self.problem(1 / budget, scores=scores), lab.judge(library)
        key = f"{budget} {library.name}"
        found = lab.rounds(f"rounds {key}", problem, judge, library)
        pair_judge = PairJudge(judge, problem, lab.config)
        by_pairs = lab.rounds(f"pairs {key}", problem, pair_judge, library)
        pairs = lab.once(f"measured pairs {key}", lambda: len(pair_judge.pairs))
        first, best, cheap = found[0], _best(found), _best(by_pairs)
        change = best["test_kl"] / first["test_kl"] - 1
        others = (
            greedy(problem),
            fewest_layers_dropped(problem, scores, lab.config),
            uniform(problem),
        )
        beside = [None if spec is None else lab.kl(spec, library) for spec in others]
        spent = [sum(r[name] for r in found) for name in ("scored", "children")]
        figures = [first["test_kl"], cheap["test_kl"], best["test_kl"], change]
        return [*figures, *beside, pairs, *spent], change

    def solved(
        self, speedup: float, library: Path | None = None, **changes: Any
    ) -> tuple[Path, Paired]:
        """Folder of the solver's child at a measured speed-up, and how it came to it."""
        library = library or self.library
        paired = self.lab.paired(
            speedup, lambda target: solve(self.problem(target, **changes)).spec, library
        )
        assert paired is not None, "the solver gives an answer, or raises"
        return self.lab.child(paired.spec, library), paired

    def search(self) -> Claim:
        """The solver against other ways to choose from the same library."""
        rows: list[list[Any]] = []
        best = {"before": 0, "after": 0}
        pruning = {"before": 0, "after": 0}
        ways = ways_to_choose(self.lab, self.library, self.scores, self.problem)
        for speedup in SPEEDUPS:
            found = {}
            for name, choose in ways.items():
                paired = self.lab.paired(speedup, choose, self.library)
                if paired is None:
                    continue
                child = self.lab.child(paired.spec, self.library)
                before = self.lab.quality(child)
                after = self.lab.quality(self.lab.distilled(child, self.lab.settings.gkd_tokens))
                found[name] = {"before": before["kl"], "after": after["kl"]}
                rows.append(
                    [
                        speedup,
                        name,
                        paired.measured,
                        paired.target,
                        paired.tries,
                        before["kl"],
                        before["accuracy_preserved"],
                        after["kl"],
                        after["accuracy_preserved"],
                    ]
                )
            for when in best:
                mip = found["MIP"][when]
                best[when] += all(mip <= other[when] for other in found.values())
                pruned = [found[n][when] for n in ("uniform", "layers dropped") if n in found]
                pruning[when] += all(mip < other for other in pruned)
        return Claim(
            name="search",
            question="Does the solver find a better child than other ways to choose?",
            paper="MMLU of 51B-sized children before GKD: MIP 78.39, greedy 70.74, "
            "no-op only 75.4, max-params 23.12; after 10B tokens of GKD: 79.70, random from the "
            "library 66.02 (98.6% and 86.6% of the parent's accuracy)",
            columns=[
                "asked", "method", "measured speed-up", "asked of the profile", "tries", "KL",
                "accuracy preserved", "KL after GKD", "accuracy preserved after GKD",
            ],
            rows=rows,
            verdict=f"least KL of all at {best['before']} of 3 speed-ups before GKD and "
            f"{best['after']} after; better than uniform and depth pruning at "
            f"{pruning['before']} and {pruning['after']}",
        )  # fmt: skip

    def metric(self) -> Claim:
        """Scores in KL against scores in loss."""
        rows, won = [], 0
        for speedup in SPEEDUPS:
            kls = {}
            for metric in ("kl", "lm_loss"):
                child, paired = self.solved(speedup, metric=metric)
                before = self.lab.quality(child)
                after = self.lab.quality(self.lab.distilled(child, self.lab.settings.gkd_tokens))
                kls[metric] = before["kl"]
                rows.append(
                    [speedup, metric, paired.measured, before["kl"], before["child_accuracy"],
                     after["kl"], after["child_accuracy"]]
                )  # fmt: skip
            won += kls["kl"] <= kls["lm_loss"]
        return Claim(
            name="metric",
            question="Are KL scores better than LM-loss scores?",
            paper="8B children near 5,830 tok/s: 72.92 average accuracy with KL, 72.40 with LM "
            "loss (figure 7)",
            columns=[
                "asked",
                "scores",
                "measured speed-up",
                "KL",
                "accuracy",
                "KL after GKD",
                "accuracy after GKD",
            ],
            rows=rows,
            verdict=f"KL scores give no higher KL at {won} of {len(SPEEDUPS)} speed-ups",
        )

    def bld_tokens(self) -> Claim:
        """More blockwise distillation."""
        rows, shares = [], (0.0, 0.25, 0.5, 1.0)
        kls: dict[float, list[float]] = {speedup: [] for speedup in SPEEDUPS}
        for share in shares:
            library = self.lab.library(share)
            scores = self.lab.scores(library)
            for speedup in SPEEDUPS:
                child, paired = self.solved(speedup, library, scores=scores)
                quality = self.lab.quality(child)
                kls[speedup].append(quality["kl"])
                tokens = int(share * self.lab.settings.bld_tokens)
                figures = [quality["kl"], quality["accuracy_preserved"]]
                rows.append([tokens, speedup, paired.measured, *figures])
        falling = sum(
            after <= before for found in kls.values() for before, after in itertools.pairwise(found)
        )
        return Claim(
            name="bld_tokens",
            question="Do more tokens of blockwise distillation give better children?",
            paper="MMLU at 0.25B, 0.5B, 1B tokens: 78.27, 78.44, 78.54",
            columns=["tokens a variant", "asked", "measured speed-up", "KL", "accuracy preserved"],
            rows=rows,
            verdict=f"KL falls or stays at {falling} of {3 * (len(shares) - 1)} steps",
        )

    def coupled(self) -> Claim:
        """Both subblocks of a layer trained together, on a reduced space."""
        answers = [self.solved(speedup)[1].spec for speedup in SPEEDUPS]
        config = self.lab.config
        reduced = SearchSpace(
            attention=tuple(
                tuple(dict.fromkeys([config.attention, *(s.blocks[n].attention for s in answers)]))
                for n in range(config.num_layers)
            ),
            ffn=tuple(
                tuple(dict.fromkeys([config.ffn, *(s.blocks[n].ffn for s in answers)]))
                for n in range(config.num_layers)
            ),
        )
        library = self.lab.library(coupled=reduced, name="coupled")
        scores = self.lab.scores(library, space=reduced)
        rows, won = [], 0
        for speedup in SPEEDUPS:
            kls = []
            for name, folder, table in (
                ("decoupled", self.library, self.scores),
                ("coupled", library, scores),
            ):
                child, paired = self.solved(speedup, folder, scores=table, space=reduced)
                quality = self.lab.quality(child)
                kls.append(quality["kl"])
                figures = [quality["kl"], quality["accuracy_preserved"]]
                rows.append([speedup, name, paired.measured, *figures])
            won += kls[1] <= kls[0]
        return Claim(
            name="coupled",
            question="Is coupled distillation on the reduced space better than decoupled?",
            paper="8B children: coupled 73.98, decoupled 73.10 accuracy at like throughput",
            columns=["asked", "distillation", "measured speed-up", "KL", "accuracy preserved"],
            rows=rows,
            verdict=f"coupled has no higher KL at {won} of {len(SPEEDUPS)} speed-ups",
        )

    def gkd_losses(self) -> Claim:
        """Every subset of the three losses."""
        child, paired = self.solved(MIDDLE)
        paper = {
            "none": 82.55, "lm": 77.83, "lm+kl": 83.88, "kl": 83.07, "lm+cosine": 78.52,
            "cosine": 83.40, "lm+cosine+kl": 83.03, "cosine+kl": 84.16,
        }  # fmt: skip
        rows = []
        for name, average in paper.items():
            losses = () if name == "none" else tuple(name.split("+"))
            tokens = self.lab.settings.gkd_tokens
            trained = self.lab.distilled(child, tokens, losses) if losses else child
            quality = self.lab.quality(trained)
            rows.append(
                [name, quality["kl"], quality["child_loss"], quality["accuracy_preserved"], average]
            )
        best_kl = min(rows, key=lambda row: row[1])[0]
        best_accuracy = max(rows, key=lambda row: row[3])[0]
        return Claim(
            name="gkd_losses",
            question="Which losses should global distillation have?",
            paper="best of eight on average accuracy after 5B tokens: cosine + KL, no LM loss",
            columns=["losses", "KL", "LM loss", "accuracy preserved", "paper's average"],
            rows=rows,
            verdict=f"at {paired.measured:.2f}x: least KL with {best_kl}, "
            f"most accuracy with {best_accuracy}",
        )

    def preserved(self) -> Claim:
        """How much accuracy longer distillation gives back."""
        rows, asked = [], {1.5: 0.98, 2.17: 0.95}
        held = []
        for speedup, least in asked.items():
            child, paired = self.solved(speedup)
            for tokens in (0, self.lab.settings.gkd_tokens, self.lab.settings.long_gkd_tokens):
                trained = self.lab.distilled(child, tokens) if tokens else child
                quality = self.lab.quality(trained)
                rows.append(
                    [speedup, tokens, paired.measured, quality["kl"], quality["child_accuracy"],
                     quality["accuracy_preserved"]]
                )  # fmt: skip
            held.append(f"{rows[-1][-1]:.1%} at {speedup}x (asked: {least:.0%})")
        return Claim(
            name="preserved",
            question="How much of the parent's next-token accuracy does the child keep?",
            paper="51B: 98.4% of the 70B's MMLU and 99.6% on average with 45B tokens, "
            "at 2.17x the throughput",
            columns=[
                "asked",
                "GKD tokens",
                "measured speed-up",
                "KL",
                "accuracy",
                "accuracy preserved",
            ],
            rows=rows,
            verdict=", ".join(held),
        )


def _rank(estimated: list[float], measured: list[float]) -> float:
    return float(spearmanr(estimated, measured).statistic)


def _best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round that measured the least damage, on the tokens of the scores."""
    return min(rounds, key=lambda done: float(done["measured"]))
