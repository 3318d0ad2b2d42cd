"""Metrics beside metrics.jsonl."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from puzzle_search.errors import InputError, MissingDependencyError
from tests.distill.helpers import StopAfter, distilled, make_child, metrics
from tests.pico import Pico


@pytest.fixture(scope="module")
def child(pico: Pico, pico_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_child(pico, pico_library, tmp_path_factory.mktemp("trackers") / "child")


def test_tensorboard_shows_each_step_once(pico: Pico, child: Path, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        distilled(pico, child, out, track="tensorboard", checkpoint_every=2, progress=StopAfter(5))
    distilled(pico, child, out, track="tensorboard")
    shown = accumulators.EventAccumulator(str(tmp_path / "out.run" / "tensorboard"))
    shown.Reload()
    expected = {line["step"]: line["loss"] for line in metrics(out)[1:]}
    found = [(event.step, event.value) for event in shown.Scalars("loss")]
    assert len(found) == len(expected)
    assert dict(found) == pytest.approx(expected)
    assert "held_out_kl" in shown.Tags()["scalars"]
    assert "step" not in shown.Tags()["scalars"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_tracker_is_named(
    pico: Pico, child: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=f"{name} is not installed") as caught:
        distilled(pico, child, tmp_path / "out", track=name)
    assert "puzzle-search[track]" in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_is_not_known(pico: Pico, child: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'mlflow' is not known"):
        distilled(pico, child, tmp_path / "out", track="mlflow")
