"""Plans and files of GGUF: written whole, alike from run to run, small in memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puzzle_search.arch import ArchitectureSpec
from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InputError
from puzzle_search.export import plan_export, write_export
from tests.export.engine_process import config_of, write_random_child, write_tokenizer
from tests.faults import SmallDisk, killed_while_writing
from tests.pico import environment, run_here

gguf = pytest.importorskip("gguf", reason="pip install 'puzzle-search[gguf]'")

PAIRS = [("no_op", "mlp_256"), ("gqa_1", "no_op"), ("linear", "linear"), ("gqa_4", "mlp_512")]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    tokenizer = write_tokenizer(folder / "tokenizer")
    spec = ArchitectureSpec.of("pico", PAIRS)
    return write_random_child(folder / "child", config_of(4), spec, tokenizer)


def test_the_plan_tells_blocks_forms_and_bytes(child: Path) -> None:
    plan = plan_export(child, "llama.cpp", dtype="f32")
    # [-, mlp] [gqa, -] [linear, -] [linear, -] [gqa, mlp]
    assert (plan.architecture, plan.blocks) == ("deci", 5)
    hidden, norm = 64, 4 * 64
    zero_ffn = 4 * 3 * 32 * hidden + norm
    assert [form.extra_bytes for form in plan.forms] == [
        4 * hidden * hidden + norm, zero_ffn, zero_ffn, zero_ffn,
    ]  # fmt: skip
    assert plan.forms[0].where == "block 0 of the file, beside ffn mlp_256 of block 0 of the child"
    own = sum(weight.nbytes for weight in load_file(child / "model.safetensors").values())
    assert plan.bytes == own + sum(form.extra_bytes for form in plan.forms)
    assert plan.notes == ("4 blocks of the child become 5",)


def test_the_file_holds_what_was_planned(child: Path, tmp_path: Path) -> None:
    plan = plan_export(child, "llama.cpp", dtype="f32")
    write_export(plan, child, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert [t.name for t in reader.tensors] == [t.name for t in plan.tensors]
    assert sum(int(t.n_bytes) for t in reader.tensors) == plan.bytes
    heads = reader.get_field("deci.attention.head_count_kv")
    assert heads is not None
    assert heads.contents() == [0, 1, 0, 0, 4]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_two_runs_write_the_same_bytes(dtype: str, child: Path, tmp_path: Path) -> None:
    for name in "ab":
        write_export(plan_export(child, "llama.cpp", dtype=dtype), child, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("dtype", "step"),
    [("f16", 2**-10), ("bf16", 2**-7), ("q8_0", 1 / 127), ("q5_0", 1 / 15), ("q4_0", 1 / 7)],
)
def test_quantised_weights_are_near(dtype: str, step: float, child: Path, tmp_path: Path) -> None:
    write_export(plan_export(child, "llama.cpp", dtype=dtype), child, tmp_path / "a.gguf")
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    own = load_file(child / "model.safetensors")["model.layers.3.mlp.up_proj.weight"]
    tensor = stored["blk.4.ffn_up.weight"]
    found = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    largest = own.view(-1, 32).abs().amax(-1, keepdim=True)
    error = (found.view(-1, 32) - own.view(-1, 32)).abs()
    assert bool((error <= largest * step).all())
    # Embedding and head keep 8 bits at least, vectors all of theirs.
    table = stored["token_embd.weight"].tensor_type.name.lower()
    assert table == (dtype if dtype in ("f16", "bf16") else "q8_0")
    assert stored["blk.4.ffn_norm.weight"].tensor_type.name == "F32"


def test_q4_k_is_llama_cpps_own(child: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    for name in "ab":
        write_export(plan_export(child, "llama.cpp", dtype="q4_k"), child, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "a").tensors}
    tensor = stored["blk.4.ffn_down.weight"]
    assert tensor.tensor_type.name == "Q4_K"
    found = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    own = load_file(child / "model.safetensors")["model.layers.3.mlp.down_proj.weight"]
    # 15 steps from a block's least to its largest number, and the width of a step in 6 bits.
    parts = own.view(-1, 32)
    span = parts.amax(-1).clamp_min(0) - parts.amin(-1).clamp_max(0)
    error = (found.view(-1, 32) - parts).abs().amax(-1)
    assert bool((error <= span * (1 / 15 + 1 / 32)).all())
    # No block of 256 divides rows of 64.
    assert stored["blk.4.ffn_up.weight"].tensor_type.name == "Q5_0"


def test_rows_that_blocks_of_32_do_not_divide_stay_f16(tmp_path: Path) -> None:
    config = config_of(2, hidden_size=48, head_dim=12)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    spec = ArchitectureSpec.identity(config)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    plan = plan_export(child, "llama.cpp", dtype="q8_0")
    assert {t.dtype for t in plan.tensors if "ffn_up" in t.name} == {"f16"}
    assert {t.dtype for t in plan.tensors if "ffn_down" in t.name} == {"q8_0"}
    assert any("stored as f16" in note for note in plan.notes)


def test_a_file_of_mixed_types_holds_what_our_runtime_computes_with(tmp_path: Path) -> None:
    config = config_of(2)
    pairs = [("gqa_1@q8_0", "mlp_512@q4_0"), ("gqa_2", "linear@f16")]
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    spec = ArchitectureSpec.of("pico", pairs)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    plan = plan_export(child, "llama.cpp", dtype="q5_0")
    write_export(plan, child, tmp_path / "a.gguf")
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    types = {name: stored[f"blk.{name}.weight"].tensor_type.name for name in (
        "0.attn_v", "0.attn_output", "0.ffn_gate", "0.ffn_down", "1.attn_v", "2.attn_output",
        "0.ffn_norm",
    )}  # fmt: skip
    assert types == {
        "0.attn_v": "Q8_0", "0.attn_output": "Q8_0", "0.ffn_gate": "Q4_0", "0.ffn_down": "Q4_0",
        "1.attn_v": "Q5_0", "2.attn_output": "F16", "0.ffn_norm": "F32",
    }  # fmt: skip
    decoder = load_decoder(child)
    for name, module in (
        ("0.attn_v", decoder.blocks[0].attention.v_proj),
        ("0.ffn_down", decoder.blocks[0].ffn.down_proj),
        ("2.attn_output", decoder.blocks[1].ffn.linear),
    ):
        tensor = stored[f"blk.{name}.weight"]
        found = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(found.view(module.weight.shape), module.weight.float())
    kept = load_file(child / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    assert not torch.equal(kept, decoder.blocks[0].ffn.down_proj.weight)


def test_a_full_disk_leaves_nothing(child: Path, small_disk: SmallDisk) -> None:
    small_disk.resize(kib=200)
    with pytest.raises(InputError, match="no space is left"):
        write_export(
            plan_export(child, "llama.cpp", dtype="f32"), child, small_disk.folder / "a.gguf"
        )
    assert not list(small_disk.folder.iterdir())


def test_a_killed_export_leaves_no_file_of_that_name(
    child: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("export", child, "--to", "llama.cpp", "--out", tmp_path / "a.gguf")
    killed_while_writing(r"a\.gguf", 1, *command)
    assert not (tmp_path / "a.gguf").exists()
    run_here(*command, "--json")
    assert json.loads(capsys.readouterr().out)["blocks"] == 5
    assert [file.name for file in tmp_path.iterdir()] == ["a.gguf"]


def test_numbers_that_are_not_finite_are_refused(child: Path, tmp_path: Path) -> None:
    plan = plan_export(child, "llama.cpp")
    broken = dataclasses.replace(
        plan.tensors[0], make=lambda: torch.full(plan.tensors[0].shape, torch.nan)
    )
    with pytest.raises(InputError, match=r"model\.embed_tokens\.weight holds numbers that are not"):
        write_export(
            dataclasses.replace(plan, tensors=(broken, *plan.tensors[1:])), child, tmp_path / "a"
        )
    assert not list(tmp_path.iterdir())


def test_memory_stays_near_the_largest_tensor(tmp_path: Path) -> None:
    # 12 blocks of 16 MB against a largest tensor of 4 MB.
    config = config_of(12, hidden_size=512, head_dim=128, intermediate_size=2048)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    spec = ArchitectureSpec.identity(config)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    code = (
        "import resource, sys\n"
        "from puzzle_search.export import plan_export, write_export\n"
        "plan = plan_export(sys.argv[1], 'llama.cpp', dtype='q8_0')\n"
        "import gguf, gguf.quants, transformers.models.llama.modeling_llama\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_export(plan, *sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(child), str(tmp_path / "a.gguf")],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.gguf").stat().st_size > 40e6
    assert int(done.stdout) < 70_000, "KiB"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "qwen3", "head_dim": 16}, "q/k norms"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding window"),
        ({"model_type": "qwen2", "head_dim": 32}, "biases, and head size other than"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                 "original_max_position_embeddings": 64}},
            "rope scaling",
        ),
    ],
)  # fmt: skip
def test_what_the_engine_would_compute_otherwise_is_refused(
    changes: dict[str, object], told: str, tmp_path: Path
) -> None:
    config = config_of(4, **changes)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    spec = ArchitectureSpec.of("pico", PAIRS)
    child = write_random_child(tmp_path / "child", config, spec, tokenizer)
    load_decoder(child)  # this package computes it
    with pytest.raises(InputError, match=told):
        plan_export(child, "llama.cpp")


def test_unknown_engine_and_type(child: Path) -> None:
    with pytest.raises(InputError, match="'steam' is not known"):
        plan_export(child, "steam")
    with pytest.raises(InputError, match="'q9' is not known"):
        plan_export(child, "llama.cpp", dtype="q9")


def test_command_line(child: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_here("export", child, "--to", "llama.cpp", "--dtype", "q8_0", "--dry-run")
    told = capsys.readouterr().out
    assert "blk.0.attn_output.weight" in told
    assert "substitute: block 0 of the file" in told
    assert told.endswith("nothing written\n")
    with pytest.raises(InputError, match="no --out is given"):
        run_here("export", child, "--to", "llama.cpp")
