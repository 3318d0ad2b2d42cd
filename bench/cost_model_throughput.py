"""Published throughput of whole models against the cost model, row by row."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from puzzle_search.arch import ParentConfig
from puzzle_search.cost.fitting.calibrate_engine import (
    PredictedThroughput,
    PublishedThroughput,
    fit_step,
    predict,
    with_step,
)
from puzzle_search.cost.modelled.hardware import CostModel
from puzzle_search.cost.modelled.roofline import roofline_engine
from puzzle_search.cost.scenario import Scenario
from puzzle_search.resources import resource
from puzzle_search.solve import Limits
from puzzle_search.solve.question.ask import Question, ask

BLOG, RELEASES = "blog-2024-09", ("0.17", "0.14.0")
PARENT, CHILD, SMALL = "Llama-3.1-70B", "Nemotron-51B", "Nemotron-40B"
STEP_SOURCE = (
    "NVIDIA technical blog 2024-09 on Llama-3.1-Nemotron-51B: H100 SXM 80 GB, FP8, TensorRT-LLM; "
    "errors leave one row out. The TP term (log2), batches up to 1024 and prefill in chunks of 8192"
    " tokens were chosen by hand, looking at this table and at the one of TensorRT-LLM 0.17"
)
# The largest batch of the releases is the default of their builder; what the blog used is not told.
RELEASE_MAX_BATCH = 2048


def parent_config() -> ParentConfig:
    """The shape of Llama-3.1-70B."""
    return ParentConfig.from_file(resource("examples", "llama-3.1-70b", "config.json"), name=PARENT)


def published_rows(data: Path, version: str, gpu: str = "H100") -> list[PublishedThroughput]:
    """Rows of one published table and GPU whose architectures are known."""
    config = parent_config()
    blocks = {
        PARENT: ((config.attention, config.ffn),) * config.num_layers,
        CHILD: tuple(child_blocks(data / "nemotron" / "Llama-3_1-Nemotron-51B-Instruct.json")),
    }
    return [
        PublishedThroughput(
            model=row["model"],
            blocks=blocks[row["model"]],
            scenario=Scenario(input_len=int(row["isl"]), output_len=int(row["osl"])),
            tp=int(float(row["tp"])),
            tokens_per_second_per_gpu=float(row["tok_s_per_gpu"]),
        )
        for row in _table(data)
        if row["trtllm_version"] == version and row["gpu"] == gpu and row["model"] in blocks
    ]


def _table(data: Path) -> list[dict[str, str]]:
    with (data / "published_throughput.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def child_blocks(path: Path) -> Iterator[tuple[str, str]]:
    """The (attention, ffn) variants of a published child."""
    for layer in json.loads(path.read_text(encoding="utf-8"))["layers"]:
        attention = f"gqa_{layer['num_kv_heads']}" if layer["attn"] == "gqa" else layer["attn"]
        ffn = f"mlp_{layer['intermediate_size']}" if layer["ffn"] == "ffn" else layer["ffn"]
        yield attention, ffn


def is_counted(row: PublishedThroughput) -> bool:
    """Whether a row counts. The 70B on one GPU hangs on a few GB of KV cache, not on speed."""
    return not (row.model == PARENT and row.tp == 1)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published row beside what the cost model and the data sheet alone say of it."""

    gpu: str
    published: PublishedThroughput
    said: PredictedThroughput
    datasheet: PredictedThroughput

    @property
    def counted(self) -> bool:
        """Whether the row enters the means."""
        return is_counted(self.published)

    @property
    def ratio(self) -> float:
        """Predicted / published."""
        said = self.said.tokens_per_second_per_gpu
        return said / self.published.tokens_per_second_per_gpu

    @property
    def datasheet_ratio(self) -> float:
        """The data sheet's / published."""
        said = self.datasheet.tokens_per_second_per_gpu
        return said / self.published.tokens_per_second_per_gpu


def predicted_rows(rows: Sequence[PublishedThroughput], model: CostModel) -> list[Row]:
    """Predict published rows of one GPU."""
    config = parent_config()
    step = model.engine("trtllm").step
    ideal = replace(
        model,
        engines={
            "trtllm": roofline_engine(
                model.sheet, max_batch=step.max_batch, max_tokens=step.max_tokens
            )
        },
    )
    return [
        Row(
            gpu=model.gpu,
            published=row,
            said=predict(row, config, model),
            datasheet=predict(row, config, ideal),
        )
        for row in rows
    ]


def as_released(model: CostModel) -> CostModel:
    """The model with the largest batch of the TensorRT-LLM releases."""
    step = model.engine("trtllm").step
    return with_step(model, "trtllm", replace(step, max_batch=RELEASE_MAX_BATCH))


def print_rows(rows: Sequence[Row], *, scalar: float = 1.0) -> None:
    """One line a row: batch, what limits it, published, predicted, the data sheet's error."""
    print(f"{'model':14}{'GPU':>5}{'in/out':>11}{'TP':>3}{'batch':>6}  {'limit':10}", end="")
    print(f"{'published':>10}{'predicted':>10}{'error':>8}  datasheet alone")
    for row in rows:
        said = row.said.tokens_per_second_per_gpu / scalar
        print(
            f"{row.published.model:14}{row.gpu:>5}{row.published.scenario!s:>11}"
            f"{row.published.tp:3}{row.said.batch:6}  {row.said.limit:10}"
            f"{row.published.tokens_per_second_per_gpu:10.0f}{said:10.0f}"
            f"{row.ratio / scalar - 1:8.1%}{row.datasheet_ratio - 1:17.1%}"
            f"{'' if row.counted else '  (not counted)'}"
        )


def mape(ratios: Sequence[float]) -> float:
    """Mean absolute percentage error of predicted / published."""
    return statistics.fmean(abs(ratio - 1) for ratio in ratios)


def scalar_of(ratios: Sequence[float]) -> float:
    """The one scalar of an engine release: median of predicted / published."""
    return float(np.exp(np.median(np.log(ratios))))


def leave_one_out(ratios: Sequence[float]) -> list[float]:
    """Each ratio after the scalar of all the others."""
    others = [[*ratios[:i], *ratios[i + 1 :]] for i in range(len(ratios))]
    return [ratio / scalar_of(rest) for ratio, rest in zip(ratios, others, strict=True)]


def blog(data: Path, model: CostModel) -> dict[str, Any]:
    """NVIDIA's 2024-09 table; prints it and returns its errors."""
    published = published_rows(data, BLOG)
    rows = predicted_rows(published, model)
    print_rows(rows)
    counted = [row.ratio for row in rows if row.counted]
    alone = [abs(row.ratio - 1) for row in rows if not row.counted]
    _, left_out = fit_step(
        [row for row in published if is_counted(row)], parent_config(), model, source=STEP_SOURCE
    )
    pairs = child_to_parent(rows)
    ratios = [abs(said / was - 1) for _, was, said, _ in pairs]
    ideal = [abs(sheet / was - 1) for _, was, _, sheet in pairs]
    print(f"\nchild / parent {'published':>10}{'predicted':>10}{'datasheet alone':>17}")
    for scenario, was, said, sheet in pairs:
        print(f"{scenario!s:14}{was:11.2f}{said:10.2f}{sheet:17.2f}")
    found = {
        "rows": len(counted),
        "mape_in_sample": mape(counted),
        "mape_leave_one_out": float(np.mean(np.abs(left_out))),
        "mape_other_release_one_scalar": _other_release(data, model, published),
        "datasheet_mape": mape([row.datasheet_ratio for row in rows if row.counted]),
        "parent_tp1_worst": max(alone),
        "child_to_parent_median": statistics.median(ratios),
        "child_to_parent_worst": max(ratios),
        "datasheet_child_to_parent_median": statistics.median(ideal),
    }
    return {name: round(value, 4) for name, value in found.items()}


def _other_release(data: Path, model: CostModel, published: Sequence[PublishedThroughput]) -> float:
    """MAPE of the blog's rows when the step is fitted on TensorRT-LLM 0.17, with one scalar."""
    rows = [row for row in published_rows(data, RELEASES[0]) if is_counted(row)]
    step, _ = fit_step(rows, parent_config(), as_released(model), source=RELEASES[0])
    max_batch = model.engine("trtllm").step.max_batch
    other = with_step(model, "trtllm", replace(step, max_batch=max_batch))
    counted = [row for row in published if is_counted(row)]
    return mape(leave_one_out([row.ratio for row in predicted_rows(counted, other)]))


def child_to_parent(rows: Sequence[Row]) -> list[tuple[Scenario, float, float, float]]:
    """Speed of the child to the parent's: scenario, published, predicted, of the data sheet."""
    parents = {
        row.published.scenario: row
        for row in rows
        if row.published.model == PARENT and row.published.tp > 1
    }
    pairs = [
        (row, parents[row.published.scenario])
        for row in rows
        if row.published.model == CHILD and row.published.scenario in parents
    ]
    return [
        (
            row.published.scenario,
            row.published.tokens_per_second_per_gpu / parent.published.tokens_per_second_per_gpu,
            row.said.tokens_per_second_per_gpu / parent.said.tokens_per_second_per_gpu,
            row.datasheet.tokens_per_second_per_gpu / parent.datasheet.tokens_per_second_per_gpu,
        )
        for row, parent in pairs
    ]


def small_child(data: Path, model: CostModel) -> dict[str, Any]:
    """The 40B's two rows. NVIDIA did not publish its layers, so that only their ratio is tested.

    The child is the solver's answer to the published throughput of the first row, which therefore
    agrees by construction; the second row is predicted for that child.
    """
    rows = {
        (int(row["isl"]), int(row["osl"])): float(row["tok_s_per_gpu"])
        for row in _table(data)
        if row["model"] == SMALL
    }
    asked, tested = (128, 1024), (2048, 128)
    limits = Limits(tokens_per_second_per_gpu=rows[asked])
    answer = ask(Question(scenarios=[("128/1024", limits)]), max_seconds=30)
    blocks = tuple((block.attention, block.ffn) for block in answer.spec.blocks)
    said = {
        lengths: predict(
            PublishedThroughput(
                model=SMALL,
                blocks=blocks,
                scenario=Scenario(input_len=lengths[0], output_len=lengths[1]),
                tp=1,
                tokens_per_second_per_gpu=rows[lengths],
            ),
            parent_config(),
            model,
        )
        for lengths in (asked, tested)
    }
    speeds = {lengths: found.tokens_per_second_per_gpu for lengths, found in said.items()}
    error = (speeds[tested] / speeds[asked]) / (rows[tested] / rows[asked]) - 1
    print(f"\n{SMALL}: layers not published; child of the solver for {rows[asked]:.0f} tok/s")
    for lengths, found in said.items():
        print(
            f"{lengths[0]}/{lengths[1]}: batch {found.batch} ({found.limit}), published "
            f"{rows[lengths]:.0f}, predicted {speeds[lengths]:.0f}"
        )
    print(f"ratio of the two rows: error {error:.1%}")
    return {"ratio_error": round(error, 4)}


def releases(data: Path, models: Sequence[CostModel]) -> dict[str, Any]:
    """TensorRT-LLM releases at TP 2 to 8 on every GPU, with one scalar each; prints all rows."""
    summary: dict[str, Any] = {}
    models = [as_released(model) for model in models]
    for version in RELEASES:
        rows = [
            row
            for model in models
            for row in predicted_rows(published_rows(data, version, model.gpu.upper()), model)
        ]
        counted = [row for row in rows if row.counted]
        ratios = [row.ratio for row in counted]
        scalar = scalar_of(ratios)
        print(f"\nTensorRT-LLM {version}, one scalar {scalar:.3f}")
        print_rows(rows, scalar=scalar)
        at = {(row.gpu, row.published.scenario, row.published.tp): row for row in counted}
        pairs = [
            (row, at[key])
            for row in counted
            if (key := ("h200", row.published.scenario, row.published.tp)) in at
            and row.gpu == "h100"
        ]
        between = [old.ratio / new.ratio for old, new in pairs]
        ideal = [old.datasheet_ratio / new.datasheet_ratio for old, new in pairs]
        sheet = [row.datasheet_ratio for row in counted]
        alone = [abs(row.ratio / scalar - 1) for row in rows if not row.counted]
        found = {
            "rows": len(counted),
            "scalar": scalar,
            "mape_leave_one_out": mape(leave_one_out(ratios)),
            "mape_without_scalar": mape(ratios),
            "datasheet_mape": mape(sheet),
            "datasheet_one_scalar_mape": mape(leave_one_out(sheet)),
            "h100_to_h200_pairs": len(between),
            "h100_to_h200_mape": mape(between),
            "datasheet_h100_to_h200_mape": mape(ideal),
            "parent_tp1_worst": max(alone),
        }
        summary[version] = {name: round(value, 4) for name, value in found.items()}
    return summary
