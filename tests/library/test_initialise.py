"""Initialisers against their definitions, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from puzzle_search.arch import Gqa, Linear, Mlp, ParentConfig, Subblock, Variant
from puzzle_search.library.initialise import Calibration, initial_candidates
from puzzle_search.model import HeterogeneousDecoder, Rotary, SubblockModule, make_subblock
from tests.pico import Pico

TOKENS = 96


@pytest.fixture(scope="module")
def decoder(pico: Pico) -> HeterogeneousDecoder:
    return pico.decoder()


def calibration(decoder: HeterogeneousDecoder, subblock: Subblock) -> Calibration:
    """A parent subblock with random inputs: what the initialisers are given."""
    module: SubblockModule = getattr(decoder.blocks[1], subblock)
    generator = torch.Generator().manual_seed(1)
    x_BLD = torch.randn(3, TOKENS // 3, decoder.config.hidden_size, generator=generator)
    rotary = decoder.rotary.slice(0, TOKENS // 3, x_BLD)
    with torch.no_grad():
        normed = module.norm(x_BLD)
        output = module(x_BLD, rotary, None) - x_BLD
    return Calibration(
        config=decoder.config,
        subblock=subblock,
        module=module,
        normed_TD=normed.flatten(0, 1),
        output_TD=output.flatten(0, 1),
    )


def candidate(variant: Variant, given: Calibration, method: str) -> dict[str, np.ndarray]:
    with torch.no_grad():
        tensors = initial_candidates(variant, given)[method]
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def weights(given: Calibration) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in given.tensors.items()}


def test_kv_heads_are_means_of_their_neighbours(decoder: HeterogeneousDecoder) -> None:
    given = calibration(decoder, "attention")
    made, own, size = candidate(Gqa(1), given, "mean_pool"), weights(given), given.config.head_dim
    for name in ("k_proj.weight", "v_proj.weight"):
        expected = np.zeros((size, given.config.hidden_size))
        for row in range(size):
            for head in range(2):
                expected[row] += own[name][head * size + row] / 2
        np.testing.assert_allclose(made[name], expected, atol=1e-6)
    for name in ("q_proj.weight", "o_proj.weight", "norm.weight"):
        np.testing.assert_array_equal(made[name], own[name])


def test_pooling_keeps_neighbours_together() -> None:
    raw = {
        "model_type": "llama", "hidden_size": 16, "num_attention_heads": 8,
        "num_key_value_heads": 4, "num_hidden_layers": 1, "intermediate_size": 8,
        "vocab_size": 8, "max_position_embeddings": 8, "attention_bias": True,
    }  # fmt: skip
    config = ParentConfig.from_dict(raw, name="biased")
    module = make_subblock(Gqa(4), config)
    empty = torch.zeros(1, 16)
    given = Calibration(
        config=config, subblock="attention", module=module, normed_TD=empty, output_TD=empty
    )
    made, own = candidate(Gqa(2), given, "mean_pool"), weights(given)
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        heads = own[name].reshape(4, 2, *own[name].shape[1:])
        pooled = made[name].reshape(2, 2, *own[name].shape[1:])
        np.testing.assert_allclose(pooled[0], (heads[0] + heads[1]) / 2, atol=1e-6)
        np.testing.assert_allclose(pooled[1], (heads[2] + heads[3]) / 2, atol=1e-6)


def test_channels_of_greatest_contribution_are_kept_in_order(
    decoder: HeterogeneousDecoder,
) -> None:
    given = calibration(decoder, "ffn")
    own = {name: value.astype(np.float64) for name, value in weights(given).items()}
    x = given.normed_TD.double().numpy()
    gate = x @ own["gate_proj.weight"].T
    channels = gate / (1 + np.exp(-gate)) * (x @ own["up_proj.weight"].T)
    contribution = np.abs(channels).mean(axis=0) * np.sqrt(
        (own["down_proj.weight"] ** 2).sum(axis=0)
    )
    kept = np.sort(np.argsort(-contribution)[:256])
    made = candidate(Mlp(256), given, "channel_contribution")
    np.testing.assert_array_equal(
        made["gate_proj.weight"], weights(given)["gate_proj.weight"][kept]
    )
    np.testing.assert_array_equal(made["up_proj.weight"], weights(given)["up_proj.weight"][kept])
    np.testing.assert_array_equal(
        made["down_proj.weight"], weights(given)["down_proj.weight"][:, kept]
    )


def test_the_attention_product_is_attention_of_one_token_to_itself(
    decoder: HeterogeneousDecoder,
) -> None:
    given = calibration(decoder, "attention")
    product = candidate(Linear(), given, "product")["linear.weight"]
    x_B1D = given.normed_TD[:8, None]
    rotary = decoder.rotary.slice(5, 1, x_B1D)  # at any position: a single key is always attended
    with torch.no_grad():
        expected = given.module.mix(x_B1D, rotary, None)[:, 0].numpy()
    np.testing.assert_allclose(x_B1D[:, 0].numpy() @ product.T, expected, atol=2e-5)


def test_the_ffn_product_is_the_ffn_with_open_gates(decoder: HeterogeneousDecoder) -> None:
    given = calibration(decoder, "ffn")
    own = weights(given)
    product = candidate(Linear(), given, "product")["linear.weight"]
    expected = (given.normed_TD.numpy() @ own["up_proj.weight"].T) @ own["down_proj.weight"].T
    np.testing.assert_allclose(given.normed_TD.numpy() @ product.T, expected, atol=1e-3)


@pytest.mark.parametrize("subblock", ["attention", "ffn"])
def test_least_squares_solves_the_ridge_problem(
    decoder: HeterogeneousDecoder, subblock: Subblock
) -> None:
    given = calibration(decoder, subblock)
    x, y = given.normed_TD.double().numpy(), given.output_TD.double().numpy()
    # min |XW - Y|^2 + r |W|^2 is plain least squares with sqrt(r) I stacked below X.
    ridge = 1e-3 * (x**2).sum(axis=0).mean()
    size = x.shape[1]
    stacked_x = np.vstack([x, np.sqrt(ridge) * np.eye(size)])
    stacked_y = np.vstack([y, np.zeros((size, size))])
    expected = np.linalg.lstsq(stacked_x, stacked_y, rcond=None)[0].T
    made = candidate(Linear(), given, "least_squares")
    np.testing.assert_allclose(made["linear.weight"], expected, atol=1e-4)
    np.testing.assert_array_equal(made["norm.weight"], weights(given)["norm.weight"])


@pytest.mark.parametrize(
    ("subblock", "variant", "method"),
    [("attention", Gqa(2), "mean_pool"), ("ffn", Mlp(512), "channel_contribution")],
)
def test_keeping_everything_gives_the_parent(
    decoder: HeterogeneousDecoder, subblock: Subblock, variant: Variant, method: str
) -> None:
    given = calibration(decoder, subblock)
    made = candidate(variant, given, method)
    assert made.keys() == weights(given).keys()
    for name, value in weights(given).items():
        np.testing.assert_array_equal(made[name], value)


def test_positions_do_not_change_with_the_number_of_kv_heads(pico: Pico) -> None:
    """A pooled head whose neighbours are equal attends as they did."""
    config = pico.config
    torch.manual_seed(3)
    parent = make_subblock(Gqa(2), config).requires_grad_(False)
    size = config.head_dim
    for projection in (parent.k_proj, parent.v_proj):
        projection.weight[size:] = projection.weight[:size]
    x_BLD = torch.randn(2, 12, config.hidden_size)
    rotary = Rotary(config).slice(0, 12, x_BLD)
    given = Calibration(
        config=config,
        subblock="attention",
        module=parent,
        normed_TD=x_BLD.flatten(0, 1),
        output_TD=x_BLD.flatten(0, 1),
    )
    student = make_subblock(Gqa(1), config)
    student.load_state_dict(initial_candidates(Gqa(1), given)["mean_pool"])
    with torch.no_grad():
        torch.testing.assert_close(student(x_BLD, rotary, None), parent(x_BLD, rotary, None))
