"""``bench``, ``bench sweep`` and ``generate --chat`` from the command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.errors import InputError
from tests.pico import Pico, environment, run_here

LENGTHS = ("--input-len", 8, "--output-len", 4)
SIZE = (*LENGTHS, "--num-iters", 2)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    pairs = [("gqa_1", "mlp_256"), ("gqa_2", "mlp_512"), ("linear", "no_op")]
    ArchitectureSpec.of("parent", pairs).write(tmp_path / "spec.yaml")
    return tmp_path / "spec.yaml"


def test_the_first_command_of_the_group_needs_no_name(
    pico: Pico, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = []
    for command in (["bench"], ["bench", "latency"]):
        run_here(*command, *SIZE, "--batch-size", 2, pico.parent, "--json")
        keys.append(list(json.loads(capsys.readouterr().out)["models"]))
    assert keys[0] == keys[1] == [str(pico.parent)]


def test_a_shape_without_weights(
    pico: Pico, spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    run_here(
        "bench", pico.parent, spec, "--model", pico.parent, *SIZE, "--batch", "auto",
        "--dtype", "bf16", "--output-json", file,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert f"{spec} (random weights): batch " in out
    assert "the fastest of those tried" in out
    assert "models in turn" in out
    written = json.loads(file.read_text())
    assert (written["input_len"], written["output_len"], written["dtype"]) == (8, 4, "bf16")
    parent, child = written["models"].values()
    assert (parent["weights"], child["weights"]) == ("checkpoint", "random weights")
    larger = max(1, child["batch"] / parent["batch"])  # the fastest batches need not be the same
    assert child["memory_bytes"] < larger * parent["memory_bytes"]
    for name in ("ttft", "tpot", "latency"):
        assert 0 < child[f"{name}_ms"] <= child[f"{name}_p99_ms"]


def test_most_load(pico: Pico, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(
        "bench", pico.parent, *LENGTHS, "--batch-size", 3, "--max-load", "--requests", 7, "--json"
    )
    result = json.loads(capsys.readouterr().out)
    assert result["load"] == "max"
    [figures] = result["models"].values()
    assert (figures["requests"], figures["batch"]) == (7, 3)


def test_sweep_writes_table_json_and_picture(
    pico: Pico, spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "sweep"
    run_here(
        "bench", "sweep", pico.parent, spec, "--model", pico.parent, *SIZE,
        "--max-batch-size", 4, "--out", out,
    )  # fmt: skip
    assert "8/4, fp32" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    expected = [(str(model), str(b)) for b in (1, 2, 4) for model in (pico.parent, spec)]
    assert [(row["model"], row["batch"]) for row in rows] == expected
    points = json.loads((out / "sweep.json").read_text())["points"]
    for row, point in zip(rows, points, strict=True):
        user, ttft, tpot = (
            float(row[name]) for name in ("tokens_per_second_per_user", "ttft_ms", "tpot_ms")
        )
        assert user == pytest.approx(1000 / tpot)
        assert point["latency_ms"] >= ttft
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--batch-size", "0"], "batch size '0'"),
        (["--batch-size", "many"], "batch size 'many'"),
        (["--requests", "3"], "--requests is of --max-load"),
    ],
)
def test_options_that_cannot_be_used(pico: Pico, arguments: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        run_here("bench", pico.parent, *arguments)


def test_a_model_named_twice(pico: Pico) -> None:
    for command in ("latency", "sweep"):
        with pytest.raises(InputError, match="a model is named twice"):
            run_here("bench", command, pico.parent, pico.parent)


def test_help_of_both_commands_needs_no_torch() -> None:
    code = (
        "import sys; from puzzle_search.cli.main import app\n"
        "for command in ('latency', 'sweep'):\n"
        "    app(['bench', command, '--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env=environment(), timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "--num-iters-warmup" in ended.stdout
    assert "--max-batch-size" in ended.stdout


TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.mark.parametrize("system", [None, "be brief"])
def test_chat_answers_what_transformers_does(
    pico: Pico, tmp_path: Path, capsys: pytest.CaptureFixture[str], system: str | None
) -> None:
    folder = tmp_path / "chat"
    folder.mkdir()
    for file in pico.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "hello"}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answer = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    expected = tokenizer.decode(answer, skip_special_tokens=True)
    options = ["--system", system] if system else []
    run_here("generate", folder, "--chat", "--prompt", "hello", "--max-new-tokens", 8, *options)
    assert capsys.readouterr().out == expected + "\n"


def test_chat_where_there_is_no_template(pico: Pico) -> None:
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        run_here("generate", pico.parent, "--chat", "--prompt", "hello")
    with pytest.raises(InputError, match="--system is of --chat"):
        run_here("generate", pico.parent, "--system", "be brief", "--prompt", "hello")
