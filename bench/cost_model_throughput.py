"""Published throughput of whole models against what users get from the cost model, row by row."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from puzzle_search.arch import ParentConfig
from puzzle_search.cost import ScenarioCost
from puzzle_search.cost.fitting.calibrate_engine import PublishedThroughput, fit_step, predict
from puzzle_search.cost.modelled.constants import StepConstants
from puzzle_search.cost.modelled.hardware import CostModel
from puzzle_search.cost.modelled.roofline import roofline_engine
from puzzle_search.cost.scenario import Scenario
from puzzle_search.resources import resource

BLOG, RELEASES = "blog-2024-09", ("blog-2024-09", "0.17", "0.14.0")
PARENT, CHILD = "Llama-3.1-70B", "Nemotron-51B"
STEP_SOURCE = (
    "NVIDIA technical blog 2024-09 on Llama-3.1-Nemotron-51B (H100, TensorRT-LLM) and the "
    "performance overviews of TensorRT-LLM 0.14 and 0.17 (H100, H200), FP8, one scalar a release, "
    "that of the blog kept; without the 70B on one H100 of the overviews; errors leave one row out"
)


def parent_config() -> ParentConfig:
    """The shape of Llama-3.1-70B."""
    return ParentConfig.from_file(resource("examples", "llama-3.1-70b", "config.json"), name=PARENT)


def published_rows(data: Path) -> list[tuple[str, PublishedThroughput]]:
    """Every published row whose architecture is known, with its GPU; the blog's first."""
    config = parent_config()
    child = data / "nemotron" / "Llama-3_1-Nemotron-51B-Instruct.json"
    blocks = {
        PARENT: ((config.attention, config.ffn),) * config.num_layers,
        CHILD: tuple(child_blocks(child)),
    }
    with (data / "published_throughput.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            (
                row["gpu"].lower(),
                PublishedThroughput(
                    release=row["trtllm_version"],
                    model=row["model"],
                    blocks=blocks[row["model"]],
                    scenario=Scenario(input_len=int(row["isl"]), output_len=int(row["osl"])),
                    tp=int(float(row["tp"])),
                    tokens_per_second_per_gpu=float(row["tok_s_per_gpu"]),
                ),
            )
            for row in csv.DictReader(file)
            if row["model"] in blocks
        ]
    return sorted(rows, key=lambda row: RELEASES.index(row[1].release))


def child_blocks(path: Path) -> Iterator[tuple[str, str]]:
    """The (attention, ffn) variants of a published child."""
    for layer in json.loads(path.read_text(encoding="utf-8"))["layers"]:
        attention = f"gqa_{layer['num_kv_heads']}" if layer["attn"] == "gqa" else layer["attn"]
        ffn = f"mlp_{layer['intermediate_size']}" if layer["ffn"] == "ffn" else layer["ffn"]
        yield attention, ffn


def is_fitted(gpu: str, row: PublishedThroughput) -> bool:
    """Whether a row is fitted and counted.

    The 70B on one H100 hangs on how many GB an engine leaves for its KV cache: from 5 in 0.14 to 10
    in 0.17. The blog's is counted.
    """
    return not (gpu == "h100" and row.model == PARENT and row.tp == 1 and row.release != BLOG)


def fit_steps(data: Path, models: Mapping[str, CostModel]) -> dict[str, StepConstants]:
    """The step constants of TensorRT-LLM on each GPU, from all published rows that count."""
    used = [(models[gpu], row) for gpu, row in published_rows(data) if is_fitted(gpu, row)]
    return fit_step(used, parent_config(), source=STEP_SOURCE)[0]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published row beside what users get and what the data sheet alone says."""

    gpu: str
    published: PublishedThroughput
    said: ScenarioCost
    datasheet: ScenarioCost

    @property
    def counted(self) -> bool:
        """Whether the row enters the means."""
        return is_fitted(self.gpu, self.published)

    @property
    def ratio(self) -> float:
        """Predicted / published."""
        return self._ratio(self.said)

    @property
    def datasheet_ratio(self) -> float:
        """The data sheet's / published."""
        return self._ratio(self.datasheet)

    def _ratio(self, said: ScenarioCost) -> float:
        return said.tokens_per_second_per_gpu / self.published.tokens_per_second_per_gpu


def predicted_rows(data: Path, models: Mapping[str, CostModel]) -> list[Row]:
    """Every published row, predicted with static batches."""
    config = parent_config()
    ideal = {
        gpu: replace(
            model,
            engines={
                "trtllm": roofline_engine(
                    model.sheet, max_batch=model.engine("trtllm").step.max_batch
                )
            },
        )
        for gpu, model in models.items()
    }
    return [
        Row(
            gpu=gpu,
            published=row,
            said=predict(row, config, models[gpu]),
            datasheet=predict(row, config, ideal[gpu]),
        )
        for gpu, row in published_rows(data)
    ]


def print_rows(rows: Sequence[Row], scalar: float) -> None:
    """One line a row: batch, published, predicted, its error, the data sheet's."""
    print(f"{'model':14}{'GPU':>5}{'in/out':>11}{'TP':>3}{'batch':>6}", end="")
    print(f"{'published':>11}{'predicted':>10}{'error':>8}  datasheet alone")
    for row in rows:
        said = row.said.tokens_per_second_per_gpu / scalar
        print(
            f"{row.published.model:14}{row.gpu:>5}{row.published.scenario!s:>11}"
            f"{row.published.tp:3}{row.said.point.batch:6}"
            f"{row.published.tokens_per_second_per_gpu:11.0f}{said:10.0f}"
            f"{row.ratio / scalar - 1:8.1%}{row.datasheet_ratio - 1:17.1%}"
            f"{'' if row.counted else '  (not counted)'}"
        )


def mape(ratios: Sequence[float]) -> float:
    """Mean absolute percentage error of predicted / published."""
    return statistics.fmean(abs(ratio - 1) for ratio in ratios)


def throughput(data: Path, models: Mapping[str, CostModel]) -> dict[str, Any]:
    """All published rows by release, with one scalar each; prints them and returns the errors."""
    rows = predicted_rows(data, models)
    summary: dict[str, Any] = {}
    scaled: dict[int, list[float]] = {}
    for release in RELEASES:
        part = [row for row in rows if row.published.release == release]
        counted = [row for row in part if row.counted]
        ratios = [row.ratio for row in counted]
        scalar = float(np.exp(np.median(np.log(ratios))))
        print(f"\n{release}: one scalar {scalar:.3f}")
        print_rows(part, scalar)
        for row in counted:
            scaled.setdefault(row.published.tp, []).append(row.ratio / scalar)
        sheet = [row.datasheet_ratio for row in counted]
        sheet_scalar = float(np.exp(np.median(np.log(sheet))))
        summary[release] = {
            "rows": len(counted),
            "scalar": round(scalar, 4),
            "mape": round(mape([ratio / scalar for ratio in ratios]), 4),
            "mape_without_scalar": round(mape(ratios), 4),
            "datasheet_mape_one_scalar": round(mape([r / sheet_scalar for r in sheet]), 4),
        }
    everything = [ratio for ratios in scaled.values() for ratio in ratios]
    (alone,) = [
        row
        for row in rows
        if (row.published.release, row.published.model, row.published.tp) == (BLOG, PARENT, 1)
        and str(row.published.scenario) == "128/1024"
    ]
    summary["all"] = {
        "rows": len(everything),
        "mape": round(mape(everything), 4),
        "mean_error_by_tp": {
            tp: round(statistics.fmean(ratios) - 1, 4) for tp, ratios in sorted(scaled.items())
        },
        "parent_on_one_h100": round(alone.ratio - 1, 4),
        "child_to_parent": _child_to_parent(rows),
    }
    print(f"\nall rows, one scalar a release: {summary['all']}")
    return summary


def _child_to_parent(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Speed of the 51B to the 70B's at TP 4, published and predicted, by scenario."""
    blog = [row for row in rows if row.published.release == BLOG]
    parents = {
        row.published.scenario: row for row in blog if row.published.model == PARENT
        and row.published.tp > 1
    }  # fmt: skip
    found = {}
    for row in blog:
        parent = parents.get(row.published.scenario)
        if row.published.model == CHILD and parent is not None:
            pairs = (
                (row.published, parent.published),
                (row.said, parent.said),
            )
            found[str(row.published.scenario)] = [
                round(a.tokens_per_second_per_gpu / b.tokens_per_second_per_gpu, 3)
                for a, b in pairs
            ]
    return found
