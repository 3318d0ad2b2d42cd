"""A child distilled from its parent, killed and resumed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.checkpoint import load_decoder, load_tokenizer
from puzzle_search.distill import kept_state, settings
from puzzle_search.distill.trainer import Trainer
from puzzle_search.errors import InputError
from tests.distill.helpers import PAIRS, StopAfter, distilled, make_child, metrics
from tests.faults import SmallDisk, killed_while_writing, with_nan
from tests.pico import Pico, environment, kill_after, run_here


@pytest.fixture(scope="module")
def child(pico: Pico, pico_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_child(pico, pico_library, tmp_path_factory.mktemp("distill") / "child")


def test_the_child_comes_nearer_to_its_parent(pico: Pico, child: Path, tmp_path: Path) -> None:
    out = distilled(pico, child, tmp_path / "out", tokens=512 * 30, held_out_every=10)
    lines = metrics(out)
    assert [line["step"] for line in lines] == list(range(31))
    assert [line["step"] for line in lines if "held_out_kl" in line] == [0, 10, 20, 30]
    before, after = lines[0], lines[-1]
    assert after["held_out_kl"] < 0.7 * before["held_out_kl"]
    assert after["held_out_cosine"] < before["held_out_cosine"]


def arguments(pico: Pico, child: Path, out: Path) -> list[object]:
    return [
        "distill", "--parent", pico.parent, "--child", child, "--data", pico.corpus, "--out", out,
        "--tokens", 512 * 60, "--batch-tokens", 512, "--length", 32, "--held-out-tokens", 256,
        "--held-out-every", 7, "--checkpoint-every", 4, "--losses", "lm,cosine,kl",
        "--learning-rate", 2e-3, "--out-dtype", "fp32", "--dtype", "fp32",
    ]  # fmt: skip


def untimed(out: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in line.items() if key != "tokens_per_s"}
        for line in metrics(out)
    ]


@pytest.fixture(scope="module")
def unbroken(pico: Pico, child: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    run_here(*arguments(pico, child, out))
    return out


@pytest.fixture(scope="module")
def killed(pico: Pico, child: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed; to be copied."""
    out = tmp_path_factory.mktemp("killed") / "out"
    run = out.with_name("out.run")
    before = kill_after(run / "metrics.jsonl", 20, *arguments(pico, child, out))
    assert before.count(b"\n") < 60
    assert not out.exists()
    return run


def test_a_killed_run_ends_as_an_unbroken_one(
    pico: Pico, child: Path, killed: Path, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(killed, tmp_path / "out.run")
    with (tmp_path / "out.run" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1')  # a crash in the middle of a write
    run_here(*arguments(pico, child, out))
    assert [line["step"] for line in untimed(out)] == list(range(61))
    assert untimed(out) == untimed(unbroken)
    for name in ("model.safetensors", "config.json", "architecture.yaml", "distillation.json"):
        assert (out / name).read_bytes() == (unbroken / name).read_bytes()
    kept = [folder.name for folder in (tmp_path / "out.run/checkpoints").iterdir()]
    assert kept == ["step_000000060"]


@pytest.mark.parametrize(
    ("pattern", "checkpoints"),
    [
        (r"step_000000008\..*exp_avg_sq", ["step_000000004"]),
        (r"\.out\..*shard", ["step_000000060"]),
    ],
    ids=["checkpoint", "child"],
)
def test_a_run_killed_while_it_writes_ends_as_an_unbroken_one(
    pico: Pico, child: Path, unbroken: Path, tmp_path: Path, pattern: str, checkpoints: list[str]
) -> None:
    out = tmp_path / "out"
    killed_while_writing(pattern, 1, *arguments(pico, child, out))
    assert not out.exists()
    kept = (tmp_path / "out.run" / "checkpoints").glob("step_*")
    assert [folder.name for folder in kept] == checkpoints
    run_here(*arguments(pico, child, out))
    assert untimed(out) == untimed(unbroken)
    for name in ("model.safetensors", "distillation.json"):
        assert (out / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_full_disk_is_reported_and_the_run_goes_on(
    pico: Pico, child: Path, small_disk: SmallDisk, tmp_path: Path
) -> None:
    out, whole = small_disk.folder / "out", tmp_path / "out"
    settings = {"checkpoint_every": 3}
    distilled(pico, child, whole, **settings)
    weights = [p for p in whole.with_name("out.run").rglob("*") if p.is_file()]
    checkpoint_kib = sum(file.stat().st_size for file in weights) // 1024
    # Too little for one checkpoint; for two, the older of which goes; for the child beside one.
    for kib in (checkpoint_kib // 2, checkpoint_kib * 3 // 2, checkpoint_kib * 9 // 4):
        small_disk.resize(kib=kib)
        with pytest.raises(InputError, match=r"[Nn]o space") as caught:
            distilled(pico, child, out, **settings)
        assert "run the" in caught.value.remedy
        assert not out.exists()
    small_disk.resize(kib=16384)
    distilled(pico, child, out, **settings)
    assert untimed(out) == untimed(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_parent_with_nan_is_refused(pico: Pico, child: Path, tmp_path: Path) -> None:
    broken = with_nan(pico, tmp_path / "parent", "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(InputError, match=r"step 1: .*not finite") as caught:
        distilled(broken, child, tmp_path / "out")
    assert "weights of parent and child" in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_the_written_child(pico: Pico, child: Path, tmp_path: Path) -> None:
    out = distilled(pico, child, tmp_path / "out")
    spec = ArchitectureSpec.from_file(out / "architecture.yaml")
    assert [(block.attention, block.ffn) for block in spec.blocks] == PAIRS
    assert spec.solution == {"asked": {"note": "kept"}}
    assert (out / "config.json").read_bytes() == (child / "config.json").read_bytes()
    assert load_tokenizer(out).encode("text") == load_tokenizer(pico.parent).encode("text")
    record = json.loads((out / "distillation.json").read_text())
    assert record["tokens"] == 512 * 8
    lines = metrics(out)
    for when, line in (("before", lines[0]), ("after", lines[-1])):
        assert record["held_out"][when] == {k: v for k, v in line.items() if "held_out" in k}
    trained = load_file(out / "model.safetensors")
    untrained = load_file(child / "model.safetensors")
    assert trained.keys() == untrained.keys()
    assert all(not torch.equal(trained[name], untrained[name]) for name in trained)
    # The last weights, as the last checkpoint has them.
    state = load_file(tmp_path / "out.run/checkpoints/step_000000008/weights.safetensors")
    decoder = load_decoder(out).state_dict()
    assert all(torch.equal(decoder[name], state[name]) for name in decoder)


def test_a_finished_run_is_written_again(pico: Pico, child: Path, tmp_path: Path) -> None:
    out = distilled(pico, child, tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()
    lines = metrics(out)
    (out / "model.safetensors").unlink()
    distilled(pico, child, tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == before
    assert metrics(out) == lines


def test_another_run_is_refused(pico: Pico, child: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    distilled(pico, child, out)
    with pytest.raises(InputError, match="settings differ"):
        distilled(pico, child, out, learning_rate=1e-3)
    with pytest.raises(InputError, match="child_sha256 differ"):
        distilled(pico, out, out)
    (tmp_path / "out.run" / "journal.jsonl").unlink()  # the remedy
    distilled(pico, child, out, tokens=512 * 2)
    assert [line["step"] for line in metrics(out)] == [0, 1, 2]


def test_a_run_may_go_on_with_smaller_micro_batches(
    pico: Pico, child: Path, tmp_path: Path
) -> None:
    """As the message after too little memory says."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    distilled(pico, child, whole)
    with pytest.raises(KeyboardInterrupt):
        distilled(pico, child, stopped, checkpoint_every=2, progress=StopAfter(5))
    assert [line["step"] for line in metrics(stopped)] == list(range(6))
    less = {"micro_batch_tokens": 64, "activation_checkpointing": True}
    distilled(pico, child, stopped, **less)
    assert [line["step"] for line in metrics(stopped)] == list(range(9))
    for one, other in zip(untimed(whole), untimed(stopped), strict=True):
        assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("begun_alone", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_compute_what_one_does(
    pico: Pico, child: Path, killed: Path, unbroken: Path, tmp_path: Path, begun_alone: bool
) -> None:
    """FSDP2 over gloo: from the beginning, 8 blocks each a step; or going on, 3 blocks in turn."""
    out = tmp_path / "out"
    words = arguments(pico, child, out)
    if begun_alone:
        shutil.copytree(killed, tmp_path / "out.run")
        words += ["--micro-batch-tokens", 96, "--activation-checkpointing"]
    finished = run_on_two(*words)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("distilled child written") == 1
    for one, other in zip(untimed(unbroken), untimed(out), strict=True):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)
    alone, both, begun = (
        load_file(folder / "model.safetensors") for folder in (unbroken, out, child)
    )
    for name, tensor in alone.items():
        assert (both[name] - tensor).norm() < 1e-2 * (tensor - begun[name]).norm()


def run_on_two(*words: object) -> subprocess.CompletedProcess[str]:
    """The command line under torchrun, in two processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "puzzle_search", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )


def test_a_loss_that_is_not_finite_stops_the_run(
    pico: Pico, child: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings._LARGEST, "learning_rate", 1e30)
    with pytest.raises(InputError, match=r"step \d+: .*not finite; the last checkpoint is kept"):
        distilled(pico, child, tmp_path / "out", learning_rate=1e30, checkpoint_every=1)
    assert not (tmp_path / "out").exists()
    [kept] = (tmp_path / "out.run/checkpoints").iterdir()
    assert all(t.isfinite().all() for t in load_file(kept / "weights.safetensors").values())


def test_what_is_no_child_is_not_overwritten(pico: Pico, child: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    with pytest.raises(InputError, match="is not a child"):
        distilled(pico, child, tmp_path / "precious")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"losses": ("kl", "mse")}, "losses kl, mse are not known"),
        ({"losses": ()}, "are not known"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
        ({"batch_tokens": 31}, "less than one block of 32"),
        ({"tokens": 511}, "511 tokens are less than one batch of 512"),
        ({"dtype": "fp16"}, "dtype 'fp16'"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_settings_that_cannot_be_used(
    pico: Pico, child: Path, tmp_path: Path, settings: dict[str, object], pattern: str
) -> None:
    with pytest.raises(InputError, match=pattern):
        distilled(pico, child, tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let held-out losses be these, one after the other."""
    left = iter(losses)

    def held_out(self: Trainer, blocks: object) -> dict[str, float]:
        return {"held_out_loss": next(left)}

    monkeypatch.setattr(Trainer, "held_out", held_out)


def test_the_best_state_is_kept_where_the_loss_rises_again(
    pico: Pico, child: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"held_out_every": 2, "checkpoint_every": 4}
    scripted(monkeypatch, [5.0, 4.0, 3.0, 2.0, 2.5])
    out = distilled(pico, child, tmp_path / "out", **every)
    # The weights after step 6, as a run that is stopped there leaves them.
    scripted(monkeypatch, [5.0, 4.0, 3.0, 2.0])
    with pytest.raises(KeyboardInterrupt):
        distilled(
            pico, child, tmp_path / "stopped", progress=StopAfter(6),
            held_out_every=2, checkpoint_every=6,
        )  # fmt: skip
    state = load_file(tmp_path / "stopped.run/checkpoints/step_000000006/weights.safetensors")
    decoder = load_decoder(out).state_dict()
    assert all(torch.equal(decoder[name], state[name]) for name in decoder)
    record = json.loads((out / "distillation.json").read_text())
    assert (record["kept_step"], record["steps"]) == (6, 8)
    assert {w: e["held_out_loss"] for w, e in record["held_out"].items()} == {
        "before": 5.0, "after": 2.0, "last": 2.5
    }  # fmt: skip
    said = kept_state(out)
    assert said is not None
    assert "from 2 at step 6 to 2.5 at the last, 8: the state of step 6 is kept" in said
    # Those that are not gone back to are not kept either.
    assert [file.name for file in (tmp_path / "out.run" / "best").iterdir()] == ["step_000000006"]
    # A run that is done writes the same state again, and asks for no more losses.
    before = (out / "model.safetensors").read_bytes()
    shutil.rmtree(out)
    scripted(monkeypatch, [])
    assert (distilled(pico, child, out, **every) / "model.safetensors").read_bytes() == before
    shutil.rmtree(tmp_path / "out.run" / "best")
    with pytest.raises(InputError, match="the best state, of step 6, is gone"):
        distilled(pico, child, out, **every)


def test_the_best_state_outlives_an_interruption(
    pico: Pico, child: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"held_out_every": 2, "checkpoint_every": 4}
    scripted(monkeypatch, [5.0, 4.0, 3.0, 3.5, 3.6])
    whole = distilled(pico, child, tmp_path / "whole", **every)
    scripted(monkeypatch, [5.0, 4.0, 3.0, 2.0, 3.5, 3.6])
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):  # after a better step than any checkpoint has
        distilled(pico, child, out, progress=StopAfter(6), **every)
    distilled(pico, child, out, **every)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_child_that_distillation_makes_worse_stays_as_it_was(
    pico: Pico, child: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run_here(
        "distill", "--parent", pico.parent, "--child", child, "--data", pico.corpus, "--out", out,
        "--tokens", 512 * 4, "--batch-tokens", 512, "--length", 32, "--held-out-tokens", 256,
        "--learning-rate", 0.5, "--out-dtype", "fp32",
    )  # fmt: skip
    lines = metrics(out)
    assert lines[-1]["held_out_loss"] > lines[0]["held_out_loss"]
    said = capsys.readouterr().out
    assert "note: distillation raised the held-out loss" in said
    assert "the child is kept as it was before" in said
    kept, before = load_file(out / "model.safetensors"), load_file(child / "model.safetensors")
    assert all(torch.equal(kept[name], before[name]) for name in before)


def test_nothing_is_told_of_a_child_whose_last_state_is_its_best(
    pico: Pico, child: Path, tmp_path: Path
) -> None:
    assert kept_state(distilled(pico, child, tmp_path / "out")) is None
