"""The command line of profile: what its document shows, what it refuses, and how it resumes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import statistics
from importlib.util import find_spec
from pathlib import Path

import pytest

from puzzle_search.cost import Profile
from puzzle_search.errors import InputError, MissingDependencyError
from tests.pico import ROOT, Pico, kill_after, run_here


@pytest.mark.slow
def test_the_commands_of_the_document_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "profiling.md").read_text()
    (block,) = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shutil.copytree(ROOT / "examples" / "stdlib-lm", tmp_path / "examples" / "stdlib-lm",
                    ignore=shutil.ignore_patterns("work", "*.jsonl"))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run_here(*shlex.split(block.replace("--max-minutes 1", "--max-minutes 0"))[1:])
    assert "written to work/profile" in capsys.readouterr().out
    assert Profile.from_folder("work/profile").config.name == "parent"


def test_json_tells_what_was_measured(
    pico: Pico, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(
        "profile", "--model", pico.parent, "--space", pico.space_file,
        "--out", tmp_path / "profile", "--batches", "1,2", "--contexts", "9", "--prompts", "8",
        "--dtype", "bf16", "--max-minutes", 0, "--json",
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    profile = Profile.from_folder(tmp_path / "profile")
    assert told["points"] == len(profile.rows)
    assert told["steady"] == sum(row.steady for row in profile.rows)
    assert told["interpolation"]["points"] == 0, "these points and no others"
    assert profile.dtype.name == "bf16"
    assert [path.name for path in tmp_path.iterdir()] == ["profile"], "the journal is done with"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scenario", "8/8", "--contexts", "9"], "says which contexts and prompts"),
        (["--batches", "1..8"], "--batches '1..8' is neither a range nor a list"),
        (["--tp", "3"], "tp '3' is not a list of degrees"),
        (["--prompts", "8-300"], "300 tokens are more than parent attends to"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    pico: Pico, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        run_here(
            "profile", "--model", pico.parent, "--space", pico.space_file,
            "--out", tmp_path / "profile", *options,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_its_engine_says_how_to_install_it(pico: Pico, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="vLLM") as caught:
        run_here(
            "profile", "--model", pico.parent, "--space", pico.space_file,
            "--out", tmp_path / "profile", "--engine", "vllm", "--dtype", "bf16",
            "--batches", "1,2", "--contexts", "128", "--prompts", "64",
        )  # fmt: skip
    assert "install" in caught.value.remedy


def test_a_shipped_example_is_found_by_its_name(pico: Pico, tmp_path: Path) -> None:
    space = ROOT / "examples" / "llama-3.1-70b" / "space.yaml"
    with pytest.raises(InputError, match=r"more than llama-3\.1-70b attends to"):
        run_here(
            "profile", "--model", "llama-3.1-70b", "--space", space,
            "--out", tmp_path / "profile", "--contexts", "200000-200001",
        )  # fmt: skip


def test_killed_and_run_again_it_goes_on_where_it_was(pico: Pico, tmp_path: Path) -> None:
    out, journal = tmp_path / "profile", tmp_path / "profile.journal.jsonl"
    command = [
        "profile", "--model", pico.parent, "--space", pico.space_file, "--out", out,
        "--scenario", "16/16", "--batches", "1-4", "--max-minutes", "0",
    ]  # fmt: skip
    first, *groups = kill_after(journal, 3, *command).splitlines()[:3]
    assert "made_from" in json.loads(first)
    run_here(*command)
    assert not journal.exists()
    rows = Profile.from_folder(out).rows
    kept = {round(statistics.median(r["us"]), 3) for g in groups for r in json.loads(g)["readings"]}
    blocks = {row.latency_us for row in rows if row.variant != "step"}
    assert len(kept & blocks) >= len(kept) - 4  # all but whole steps, which rows hold in part


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "vllm", "--engine-python", "/no/python"], "cannot be started"),
        (["--engine-python", "/no/python"], "--engine-python is for engines"),
        (["--engine", "vllm", "--executor", "ray"], "measured by one job"),
        (["--engine", "vllm", "--jobs", "2"], "measured by one job"),
        (["--gpus-per-job", "1"], "are of a Ray cluster"),
        (["--engine", "vllm", "--max-minutes", "1"], "measured to the end"),
        (["--engine", "vllm", "--device", "cuda"], "chooses its device"),
    ],
)
def test_engines_and_places_that_are_not_there(
    pico: Pico, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_here(
            "profile", "--model", pico.parent, "--space", pico.space_file, "--dtype", "bf16",
            "--out", tmp_path / "profile", "--scenario", "64/16", "--batches", "1", *arguments,
        )  # fmt: skip
