"""Quality figures against plain numpy on transformers' logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InputError
from puzzle_search.evaluate import Quality, measure_quality
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


def loss(logits: np.ndarray, ids: np.ndarray) -> float:
    chosen = np.take_along_axis(log_softmax(logits)[:, :-1], ids[:, 1:, None], axis=-1)
    return float(-chosen.mean())


def accuracy(logits: np.ndarray, ids: np.ndarray) -> float:
    return float((logits[:, :-1].argmax(-1) == ids[:, 1:]).mean())


def test_a_model_against_itself(parent: Model, ids: torch.Tensor) -> None:
    quality = measure_quality(parent.decoder, parent.decoder, ids)
    assert quality.kl == 0
    assert quality.kl_stderr == 0
    assert quality.agreement == 1
    assert quality.child_loss == quality.parent_loss
    assert quality.accuracy_preserved == 1


def test_figures_equal_numpy(parent: Model, other: Model, ids: torch.Tensor) -> None:
    quality = measure_quality(parent.decoder, other.decoder, ids)
    tokens = ids.numpy()
    p, q = log_softmax(parent.logits), log_softmax(other.logits)
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert kl.shape == (ROWS, LENGTH)
    assert quality.kl == pytest.approx(kl.mean(), rel=1e-4)
    by_row = kl.mean(axis=1)
    assert quality.kl_stderr == pytest.approx(by_row.std(ddof=1) / np.sqrt(ROWS), rel=1e-3)
    assert quality.parent_loss == pytest.approx(loss(parent.logits, tokens), rel=1e-4)
    assert quality.child_loss == pytest.approx(loss(other.logits, tokens), rel=1e-4)
    assert quality.parent_accuracy == pytest.approx(accuracy(parent.logits, tokens), rel=1e-5)
    assert quality.child_accuracy == pytest.approx(accuracy(other.logits, tokens), rel=1e-5)
    assert 0 < quality.child_accuracy < 1
    agree = (parent.logits.argmax(-1) == other.logits.argmax(-1)).mean()
    assert quality.agreement == pytest.approx(agree, rel=1e-5)
    assert quality.tokens == ROWS * LENGTH


def test_kl_is_parent_to_child(parent: Model, other: Model, ids: torch.Tensor) -> None:
    there = measure_quality(parent.decoder, other.decoder, ids)
    back = measure_quality(other.decoder, parent.decoder, ids)
    assert abs(there.kl - back.kl) > 0.01 * there.kl
    assert (back.parent_loss, back.child_loss) == (there.child_loss, there.parent_loss)
    assert back.agreement == there.agreement


def test_one_row_has_no_standard_error(parent: Model, other: Model, ids: torch.Tensor) -> None:
    quality = measure_quality(parent.decoder, other.decoder, ids[:1])
    assert quality.kl > 0
    assert quality.kl_stderr == 0


def test_share_of_the_parents_accuracy() -> None:
    figures = {
        "kl": 0.1,
        "kl_stderr": 0.0,
        "parent_loss": 1.0,
        "child_loss": 1.1,
        "child_accuracy": 0.3,
        "agreement": 0.9,
        "tokens": 10,
    }
    quality = Quality(parent_accuracy=0.4, **figures)
    assert quality.as_dict() == figures | {
        "parent_accuracy": 0.4,
        "accuracy_preserved": pytest.approx(0.75),
    }
    assert Quality(parent_accuracy=0.0, **figures).accuracy_preserved is None


def test_other_vocabulary_is_refused(parent: Model, tmp_path: Path, ids: torch.Tensor) -> None:
    stranger = make(tmp_path, ids, vocab_size=9)
    with pytest.raises(InputError, match="cannot be compared"):
        measure_quality(parent.decoder, stranger.decoder, ids)
