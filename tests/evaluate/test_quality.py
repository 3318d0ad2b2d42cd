"""Quality figures against plain numpy on transformers' logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InputError
from puzzle_search.evaluate import measure_quality
from puzzle_search.evaluate.evaluation import Evaluation
from puzzle_search.model import HeterogeneousDecoder
from tests.model.pico import random_ids, write_parent

ROWS, LENGTH = 37, 12  # more rows than pass at once, and not a multiple of them


@dataclass(frozen=True, kw_only=True)
class Model:
    decoder: HeterogeneousDecoder
    logits: np.ndarray


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    """Tokens of a small vocabulary, so that some are guessed right."""
    return random_ids(ROWS, LENGTH, vocabulary=6)


def make(folder: Path, ids: torch.Tensor, **settings: int) -> Model:
    model = write_parent(folder, **({"vocab_size": 8} | settings))
    with torch.no_grad():
        logits = model(ids).logits.double().numpy()
    return Model(decoder=load_decoder(folder), logits=logits)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, ids: torch.Tensor) -> Model:
    return make(tmp_path_factory.mktemp("parent"), ids)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, ids: torch.Tensor) -> Model:
    return make(tmp_path_factory.mktemp("other"), ids, seed=1, intermediate_size=256)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def token_losses(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return -np.take_along_axis(log_softmax(logits)[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]


def right(logits: np.ndarray, ids: np.ndarray, top: int = 1) -> np.ndarray:
    """Whether each next token is among the first ``top``: fewer than that are above it."""
    chosen = np.take_along_axis(logits[:, :-1], ids[:, 1:, None], axis=-1)
    return (logits[:, :-1] > chosen).sum(-1) < top


def stderr(values: np.ndarray) -> float:
    return float(values.mean(axis=1).std(ddof=1) / np.sqrt(ROWS))


def test_a_model_against_itself(parent: Model, ids: torch.Tensor) -> None:
    quality = measure_quality(parent.decoder, parent.decoder, ids)
    assert quality.kl == 0
    assert quality.kl_stderr == 0
    assert quality.agreement == 1
    assert quality.child.loss == quality.parent.loss
    assert quality.accuracy_preserved == 1


def test_figures_equal_numpy(parent: Model, other: Model, ids: torch.Tensor) -> None:
    quality = measure_quality(parent.decoder, other.decoder, ids)
    tokens = ids.numpy()
    p, q = log_softmax(parent.logits), log_softmax(other.logits)
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert kl.shape == (ROWS, LENGTH)
    assert quality.kl == pytest.approx(kl.mean(), rel=1e-4)
    assert quality.kl_stderr == pytest.approx(stderr(kl), rel=1e-3)
    agree = parent.logits.argmax(-1) == other.logits.argmax(-1)
    assert quality.agreement == pytest.approx(agree.mean(), rel=1e-5)
    assert quality.agreement_stderr == pytest.approx(stderr(agree), rel=1e-5)
    assert quality.tokens == ROWS * LENGTH
    for found, logits in ((quality.parent, parent.logits), (quality.child, other.logits)):
        losses = token_losses(logits, tokens)
        assert found.loss == pytest.approx(losses.mean(), rel=1e-4)
        assert found.loss_stderr == pytest.approx(stderr(losses), rel=1e-3)
        assert found.perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-4)
        first, five = right(logits, tokens), right(logits, tokens, 5)
        assert found.accuracy == pytest.approx(first.mean(), rel=1e-5)
        assert found.accuracy_stderr == pytest.approx(stderr(first), rel=1e-5)
        assert found.top5_accuracy == pytest.approx(five.mean(), rel=1e-5)
        assert found.top5_accuracy_stderr == pytest.approx(stderr(five), rel=1e-5)
        assert 0 < found.accuracy < found.top5_accuracy < 1


@pytest.mark.parametrize("tokens", [1, 7, 12 * 16])
def test_the_tokens_held_at_a_time_change_nothing(
    parent: Model, other: Model, ids: torch.Tensor, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_quality(parent.decoder, other.decoder, ids).as_dict()
    monkeypatch.setattr("puzzle_search.evaluate.quality._TOKENS", tokens)
    parts = measure_quality(parent.decoder, other.decoder, ids).as_dict()
    assert parts == pytest.approx(whole, rel=1e-4)


def test_kl_is_parent_to_child(parent: Model, other: Model, ids: torch.Tensor) -> None:
    there = measure_quality(parent.decoder, other.decoder, ids)
    back = measure_quality(other.decoder, parent.decoder, ids)
    assert abs(there.kl - back.kl) > 0.01 * there.kl
    assert (back.parent, back.child) == (there.child, there.parent)
    assert back.agreement == there.agreement


def test_one_row_has_no_standard_error(parent: Model, other: Model, ids: torch.Tensor) -> None:
    quality = measure_quality(parent.decoder, other.decoder, ids[:1])
    assert quality.kl > 0
    assert quality.kl_stderr is None
    assert quality.child.accuracy_stderr is None
    shown = Evaluation(parent="p", children=("c",), quality=(quality,)).markdown()
    assert "±" not in shown
    assert "one block of them tells no standard error" in shown


def test_share_of_the_parents_accuracy(parent: Model, other: Model, ids: torch.Tensor) -> None:
    quality = measure_quality(parent.decoder, other.decoder, ids)
    figures = quality.as_dict()
    share = right(other.logits, ids.numpy()).sum() / right(parent.logits, ids.numpy()).sum()
    assert figures["accuracy_preserved"] == pytest.approx(share)
    assert figures["parent_loss"] == quality.parent.loss
    assert figures["child_perplexity"] == quality.child.perplexity
    hopeless = replace(quality, parent=replace(quality.parent, accuracy=0.0))
    assert hopeless.accuracy_preserved is None


def test_other_vocabulary_is_refused(parent: Model, tmp_path: Path, ids: torch.Tensor) -> None:
    stranger = make(tmp_path, ids, vocab_size=9)
    with pytest.raises(InputError, match="cannot be compared"):
        measure_quality(parent.decoder, stranger.decoder, ids)


@pytest.mark.parametrize("who", ["parent", "child"])
def test_a_model_with_nan_is_refused(
    parent: Model, ids: torch.Tensor, tmp_path: Path, who: str
) -> None:
    broken = make(tmp_path / "broken", ids).decoder
    with torch.no_grad():
        broken.blocks[0].attention.get_parameter("v_proj.weight")[0, 0] = float("nan")
    models = (broken, parent.decoder) if who == "parent" else (parent.decoder, broken)
    with pytest.raises(InputError, match=f"the {who}'s loss on held-out tokens is nan") as caught:
        measure_quality(*models, ids)
    assert f"weights of the {who}" in caught.value.remedy
