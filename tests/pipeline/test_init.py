"""``init``: a recipe by the model's size, the device's memory and the time there is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.cost import Scenario
from puzzle_search.errors import InputError
from puzzle_search.pipeline.recipes.init import named_device, write_recipe
from puzzle_search.pipeline.recipes.propose import Device, propose, propose_space
from puzzle_search.pipeline.recipes.recipe import read_recipe
from puzzle_search.pipeline.run import run_recipe
from puzzle_search.profile.hardware import products
from tests.arch.configs import CONFIGS
from tests.pico import ROOT, Pico, run_here

DEVICE = Device(
    name="a cpu", kind="cpu", dtype="fp32", memory_bytes=8e9, flops_per_second=5e10,
    evidence="measured",
)  # fmt: skip


def test_a_recipe_of_this_machine_passes_its_own_check(
    pico: Pico,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(products, "_SECONDS", 0.0)
    monkeypatch.setattr(products, "_MATRIX_SIZE", {"cpu": 64, "cuda": 64})
    out = tmp_path / "mine.yaml"
    run_here("init", pico.parent, "--data", pico.corpus, "--out", out)
    said = capsys.readouterr().out
    assert f"next: puzzle-search run {out}" in said
    recipe = read_recipe(out)
    assert recipe.name == "parent"
    assert recipe.solve.target_speedup == 1.5
    parameters = sum(parameter.numel() for parameter in pico.decoder().parameters())
    assert recipe.library.tokens == parameters // 72 // 1024 * 1024
    space = SearchSpace.from_file(recipe.space, pico.config)
    assert space.attention[0] == ("gqa_2", "gqa_1", "linear", "no_op")
    assert space.ffn[0] == ("mlp_512", "mlp_256", "linear", "no_op")
    text = out.read_text()
    assert "# tokens in a block of text" in text
    assert "  # max_ttft: " in text  # what else may be asked
    with pytest.raises(InputError, match="is there already"):
        run_here("init", pico.parent, "--out", out)
    assert out.read_text() == text


def test_sizes_are_those_that_worked_elsewhere() -> None:
    config = ParentConfig.from_file(ROOT / "examples/llama-3.1-70b")
    space = SearchSpace.from_file(ROOT / "examples/llama-3.1-70b/space.yaml", config)
    much = replace(DEVICE, kind="cuda", dtype="bf16", memory_bytes=1e13, flops_per_second=1e18)
    sizes = propose(config, space, Scenario.parse("128/1024"), much, hours=1e4)
    assert sizes.library_tokens == pytest.approx(1e9, rel=0.03)  # the paper's, for this model
    assert sizes.distill_tokens == pytest.approx(70.55e9 / 2, rel=1e-3)
    small = ParentConfig.from_file(ROOT / "examples/stdlib-lm/parent")
    space = SearchSpace.from_file(ROOT / "examples/stdlib-lm/space.yaml", small)
    sizes = propose(small, space, Scenario.parse("128/128"), DEVICE, hours=1e4)
    assert sizes.library_tokens == pytest.approx(65536, rel=0.03)  # what the example takes
    assert sizes.batch_tokens == 1024


def test_sizes_are_cut_to_the_time() -> None:
    config = ParentConfig.from_file(ROOT / "examples/llama-3.1-70b")
    space = SearchSpace.from_file(ROOT / "examples/llama-3.1-70b/space.yaml", config)
    device = replace(DEVICE, memory_bytes=1e13, flops_per_second=1e15)
    sizes = [propose(config, space, Scenario.parse("128/128"), device, hours=h) for h in (50, 100)]
    for size, hours in zip(sizes, (50, 100), strict=True):
        assert sum(size.seconds.values()) <= hours * 3600
        assert size.library_tokens < size.wanted["library"]
    assert sizes[1].library_tokens == pytest.approx(2 * sizes[0].library_tokens, rel=1e-3)
    # A token of distillation: the parent forward, the child forward and back, 2 and 6 operations
    # for each of 70.55e9 parameters.
    assert sizes[0].distill_tokens is not None
    assert sizes[0].seconds["distill"] == pytest.approx(
        sizes[0].distill_tokens * 8 * 70.55e9 / 1e15, rel=1e-3
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_the_space_proposed_is_one_that_the_model_can_have(name: str, tmp_path: Path) -> None:
    config = ParentConfig.from_dict(CONFIGS[name], name=name)
    proposed = propose_space(config)
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump({"format": "puzzle-search.search-space/1"} | proposed))
    space = SearchSpace.from_file(file, config)
    assert set(space.all_variants("ffn")) == set(proposed["ffn"])
    assert len(proposed["ffn"]) == 6


def test_batches_are_those_that_fit(pico: Pico) -> None:
    config, scenario = pico.config, Scenario.parse("64/64")
    weights = sum(f.stat().st_size for f in pico.parent.glob("*.safetensors"))
    cache = 3 * 2 * 2 * 16 * 4 * 128  # layers, K and V, heads, their size, bytes, tokens
    space = SearchSpace.uniform(config, **propose_space(config))
    for most in (1, 8, 32):
        # Activations of a step: its tokens' FFN and a batch's logits.
        step = most * 64 * (4 * 64 + 2 * 512) * 4 + most * 300 * 4
        device = replace(DEVICE, memory_bytes=weights + most * cache + 1.05 * step)
        sizes = propose(config, space, scenario, device, hours=1)
        assert max(sizes.batches) == most
        assert sizes.fits
    sizes = propose(config, space, scenario, replace(DEVICE, memory_bytes=weights), hours=1)
    assert not sizes.fits
    assert sizes.distill_tokens is None


def test_a_gpu_is_that_of_its_data_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = named_device("h100")
    assert (device.kind, device.dtype, device.evidence) == ("cuda", "bf16", "datasheet")
    assert device.flops_per_second == 989.4e12
    out = tmp_path / "r.yaml"
    run_here("init", "llama-3.1-70b", "--gpu", "h100", "--out", out)
    said = capsys.readouterr().out
    assert "has no weights" in said
    assert "does not fit h100" in said
    assert "no distill section" in said
    data = yaml.safe_load(out.read_text())
    assert "distill" not in data
    assert data["space"] == str((ROOT / "examples/llama-3.1-70b/space.yaml").resolve())
    with pytest.raises(InputError, match="runs are made on CPUs and NVIDIA GPUs"):
        named_device("b60")
    with pytest.raises(InputError, match="abacus"):
        named_device("abacus")


def test_nothing_is_written_where_a_recipe_would_be_refused(pico: Pico, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(pico.parent, parent)
    (parent / "tokenizer.json").write_text("{}")
    for model, scenario, named in (
        (parent, "16/16", "tokenizer"),
        (pico.parent, "400/400", "800 tokens exceed the 256"),
        (pico.parent, "16x16", "16x16"),
        (tmp_path / "nowhere", "16/16", "neither a shipped example nor a folder"),
    ):
        with pytest.raises(InputError, match=named):
            write_recipe(
                str(model), tmp_path / "r.yaml", device=DEVICE, scenario=scenario,
                source=str(pico.corpus),
            )  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["parent"]


@pytest.mark.slow
def test_a_proposed_recipe_runs(pico: Pico, tmp_path: Path) -> None:
    written = write_recipe(
        str(pico.parent), tmp_path / "r.yaml", device=DEVICE, scenario="16/16",
        source=str(pico.corpus), target_speedup=1.1, hours=0.01,
    )  # fmt: skip
    recipe = read_recipe(written.recipe)
    quick = recipe.model_copy(
        update={
            "profile": recipe.profile.model_copy(update={"batches": (1, 4), "max_minutes": 0.0}),
            "bench": recipe.bench.model_copy(update={"iterations": 2}),
            "evaluate": recipe.evaluate.model_copy(update={"tokens": 1024}),
            "generate": recipe.generate.model_copy(update={"prompts": ("abc",)}),
        }
    )
    assert run_recipe(quick, tmp_path / "run").child.is_dir()
