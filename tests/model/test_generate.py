"""Greedy and sampled generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from puzzle_search.checkpoint import load_decoder
from puzzle_search.errors import InputError
from puzzle_search.model import HeterogeneousDecoder, Sampling, generate
from tests.model.pico import random_ids, write_parent


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> HeterogeneousDecoder:
    folder = tmp_path_factory.mktemp("parent")
    write_parent(folder)
    return load_decoder(folder)


def text(decoder: HeterogeneousDecoder, ids: torch.Tensor, **settings: Any) -> list[list[int]]:
    """New tokens of each sequence."""
    settings = {"max_new_tokens": 20} | settings
    return torch.stack(list(generate(decoder, ids, **settings)), dim=1).tolist()


def test_greedy_is_deterministic_and_each_sequence_is_its_own(
    decoder: HeterogeneousDecoder,
) -> None:
    ids = random_ids(3, 6)
    together = text(decoder, ids)
    assert together == text(decoder, ids)
    assert together == [text(decoder, row[None])[0] for row in ids]


def test_greedy_is_the_argmax_of_a_full_pass(decoder: HeterogeneousDecoder) -> None:
    ids = random_ids(1, 6)
    known = ids
    for token in text(decoder, ids)[0]:
        with torch.no_grad():
            assert decoder(known)[0, -1].argmax() == token
        known = torch.cat([known, torch.tensor([[token]])], dim=1)


def test_seed_decides_a_sample(decoder: HeterogeneousDecoder) -> None:
    ids = random_ids(2, 6)
    first, again, other = (
        text(decoder, ids, sampling=Sampling(temperature=1.0, top_p=0.9, seed=seed))
        for seed in (7, 7, 8)
    )
    assert first == again != other


def test_sampling_leaves_the_global_generator_alone(decoder: HeterogeneousDecoder) -> None:
    before = torch.get_rng_state()
    text(decoder, random_ids(1, 6), sampling=Sampling(temperature=1.0))
    assert torch.equal(before, torch.get_rng_state())


def test_tiny_top_p_is_greedy(decoder: HeterogeneousDecoder) -> None:
    ids = random_ids(2, 6)
    sampling = Sampling(temperature=1.0, top_p=1e-6, seed=3)
    assert text(decoder, ids, sampling=sampling) == text(decoder, ids)


def test_low_temperature_is_greedy(decoder: HeterogeneousDecoder) -> None:
    ids = random_ids(2, 6)
    sampling = Sampling(temperature=1e-4, seed=3)
    assert text(decoder, ids, sampling=sampling) == text(decoder, ids)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 1.0), (1.5, 0.6)])
def test_samples_follow_the_distribution(
    decoder: HeterogeneousDecoder, temperature: float, top_p: float
) -> None:
    prompt, draws = random_ids(1, 6), 20_000
    with torch.no_grad():
        logits = decoder(prompt)[0, -1].double().numpy() / temperature
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    # The smallest set of likeliest tokens that holds at least top_p (Holtzman et al. 2020).
    order = np.argsort(-expected)
    kept = order[: int(np.searchsorted(np.cumsum(expected[order]), top_p)) + 1]
    nucleus = np.zeros_like(expected)
    nucleus[kept] = expected[kept] / expected[kept].sum()
    sampling = Sampling(temperature=temperature, top_p=top_p)
    drawn = text(decoder, prompt.expand(draws, -1), sampling=sampling, max_new_tokens=1)
    counts = np.bincount(np.ravel(drawn), minlength=len(expected))
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(nucleus))
    spread = np.sqrt(draws * nucleus * (1 - nucleus))
    assert (np.abs(counts - draws * nucleus) <= 5 * spread + 1).all()


def test_stop_token_ends_a_sequence(decoder: HeterogeneousDecoder) -> None:
    ids = random_ids(1, 6)
    free = text(decoder, ids)[0]
    stop = free[5]
    end = free.index(stop) + 1
    assert text(decoder, ids, stop_tokens=[stop])[0] == free[:end]


def test_ended_sequences_repeat_the_stop_token(decoder: HeterogeneousDecoder) -> None:
    ids = random_ids(4, 6)
    free = text(decoder, ids)
    stop = free[0][2]
    ends = [row.index(stop) if stop in row else len(row) for row in free]
    assert len(set(ends)) > 1
    made = text(decoder, ids, stop_tokens=[stop])
    steps = min(20, max(ends) + 1)
    for row, ended, end in zip(free, made, ends, strict=True):
        assert ended == (row[:end] + [stop] * 20)[:steps]


def test_nothing_asked_nothing_made(decoder: HeterogeneousDecoder) -> None:
    assert list(generate(decoder, random_ids(1, 6), max_new_tokens=0)) == []


def test_context_may_be_filled_but_not_exceeded(decoder: HeterogeneousDecoder) -> None:
    assert len(text(decoder, random_ids(1, 126), max_new_tokens=2)[0]) == 2
    with pytest.raises(InputError, match=r"129 tokens exceed the 128") as caught:
        text(decoder, random_ids(1, 126), max_new_tokens=3)
    assert "shorter prompt" in caught.value.remedy


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}],
)
def test_settings_that_name_no_distribution_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_logits_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    write_parent(tmp_path)
    broken = load_decoder(tmp_path)
    with torch.no_grad():
        broken.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match="logits are not finite"):
        text(broken, random_ids(1, 6))


@pytest.mark.parametrize(
    "settings",
    [{"seed": 2**64}, {"seed": -1}, {"temperature": -0.1}, {"temperature": float("nan")}],
)
def test_sampling_that_cannot_be(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=name):
        Sampling(**settings)


@pytest.mark.parametrize("temperature", [1e-320, 1e-300])
def test_the_lowest_temperatures_are_greedy(
    decoder: HeterogeneousDecoder, temperature: float
) -> None:
    ids = random_ids(2, 6)
    assert text(decoder, ids, sampling=Sampling(temperature=temperature)) == text(decoder, ids)
