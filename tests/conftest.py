"""Fixtures that every test package shares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from puzzle_search.arch import ParentConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults import SmallDisk
    from tests.pico import Pico

ROOT = Path(__file__).resolve().parents[1]

# Wall-clock limits per example fail on loaded machines and say nothing about the code.
settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=100)  # `make test-all`
settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that processes that share the tests end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hashes are remembered for this session alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Published architectures and timings kept beside the checkout, not in it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return folder


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for property tests, which may not use the per-test ``tmp_path``."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def pico_raw() -> dict[str, Any]:
    """The config.json of a three-layer Llama, as a fresh dict."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 96,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


@pytest.fixture
def pico_config(pico_raw: dict[str, Any]) -> ParentConfig:
    """The three-layer Llama, read."""
    return ParentConfig.from_dict(pico_raw, name="pico")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 4 KiB, which may be resized."""
    from tests.faults import SmallDisk

    try:
        disk = SmallDisk(tmp_path / "disk")
    except PermissionError as error:
        pytest.skip(str(error))
    yield disk
    disk.close()


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """A three-layer parent on disk with tokenizer, text and search space; not to be changed."""
    from tests.pico import make_pico

    return make_pico(tmp_path_factory.mktemp("pico"))


@pytest.fixture(scope="session")
def pico_library(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete library of the pico parent, not trained; not to be changed."""
    folder = tmp_path_factory.mktemp("pico_library")
    pico.library(folder)
    return folder


@pytest.fixture(scope="session")
def pico_experts(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """The same with eight experts a layer, of which a token passes two; not to be changed."""
    from tests.pico import make_pico

    return make_pico(tmp_path_factory.mktemp("pico_experts"), experts=True)


@pytest.fixture(scope="session")
def pico_experts_library(pico_experts: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete library of that parent, not trained; not to be changed."""
    folder = tmp_path_factory.mktemp("pico_experts_library")
    pico_experts.library(folder)
    return folder
