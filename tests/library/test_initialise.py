"""Initialisers against their definitions, written out in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from puzzle_search.arch import Gqa, Linear, Mlp, NoOp, ParentConfig, Subblock, Variant
from puzzle_search.errors import InputError
from puzzle_search.library.initialise import (
    Calibration,
    check_initialisers,
    initial_candidates,
)
from puzzle_search.model import HeterogeneousDecoder, Rotary, SubblockModule, make_subblock
from tests.pico import Pico

TOKENS = 96


@pytest.fixture(scope="module")
def decoder(pico: Pico) -> HeterogeneousDecoder:
    return pico.decoder()


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the initialisers are given, in three chunks, and the same at once."""

    calibration: Calibration
    config: ParentConfig
    module: SubblockModule
    normed_TD: torch.Tensor
    output_TD: torch.Tensor
    o_proj_inputs_TD: torch.Tensor


def calibration(decoder: HeterogeneousDecoder, subblock: Subblock) -> Given:
    """A parent subblock with random inputs."""
    module: SubblockModule = getattr(decoder.blocks[1], subblock)
    generator = torch.Generator().manual_seed(1)
    x_BLD = torch.randn(3, TOKENS // 3, decoder.config.hidden_size, generator=generator)
    rotary = decoder.rotary.slice(0, TOKENS // 3, x_BLD)
    projection = module.o_proj if subblock == "attention" else module.down_proj
    read: list[torch.Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        normed, after = module.norm(x_BLD), module(x_BLD, rotary, None)
    hook.remove()
    return Given(
        calibration=Calibration(
            decoder.config,
            subblock,
            module,
            lambda: zip(x_BLD.split(1), after.split(1), strict=True),
            rotary,
        ),
        config=decoder.config,
        module=module,
        normed_TD=normed.flatten(0, 1),
        output_TD=(after - x_BLD).flatten(0, 1),
        o_proj_inputs_TD=read[0].flatten(0, 1),
    )


def without_tokens(config: ParentConfig, module: SubblockModule) -> Given:
    """For initialisers that look at weights alone."""
    empty = torch.zeros(0)
    return Given(
        calibration=Calibration(
            config,
            "attention",
            module,
            lambda: iter(()),
            Rotary(config).slice(0, 1, torch.zeros(1)),
        ),
        config=config,
        module=module,
        normed_TD=empty,
        output_TD=empty,
        o_proj_inputs_TD=empty,
    )


def candidate(variant: Variant, given: Given, method: str) -> dict[str, np.ndarray]:
    with torch.no_grad():
        tensors = initial_candidates(variant, given.calibration, [method])[method]
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def weights(given: Given) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in given.module.state_dict().items()}


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
    given = without_tokens(config, module)
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


def test_the_first_head_of_each_group_is_kept(decoder: HeterogeneousDecoder) -> None:
    given = calibration(decoder, "attention")
    made, own, size = candidate(Gqa(1), given, "first_head"), weights(given), given.config.head_dim
    for name in ("k_proj.weight", "v_proj.weight"):
        np.testing.assert_array_equal(made[name], own[name][:size])
    for name in ("q_proj.weight", "o_proj.weight", "norm.weight"):
        np.testing.assert_array_equal(made[name], own[name])


def test_heads_are_weighted_by_what_they_contribute(decoder: HeterogeneousDecoder) -> None:
    given = calibration(decoder, "attention")
    own, size = weights(given), given.config.head_dim
    activity = np.abs(given.o_proj_inputs_TD.double().numpy()).mean(axis=0)
    by_channel = activity * np.sqrt((own["o_proj.weight"].astype(np.float64) ** 2).sum(axis=0))
    # Four query heads, two to a KV head.
    first, second = by_channel[: 2 * size].sum(), by_channel[2 * size :].sum()
    assert abs(first / second - 1) > 0.01
    made = candidate(Gqa(1), given, "activation_weighted")
    for name in ("k_proj.weight", "v_proj.weight"):
        expected = (first * own[name][:size] + second * own[name][size:]) / (first + second)
        np.testing.assert_allclose(made[name], expected, atol=1e-6)
    np.testing.assert_array_equal(made["o_proj.weight"], own["o_proj.weight"])


def test_channels_of_greatest_magnitude_are_kept_in_order(decoder: HeterogeneousDecoder) -> None:
    given = calibration(decoder, "ffn")
    own = {name: value.astype(np.float64) for name, value in weights(given).items()}
    norms = np.linalg.norm(
        np.vstack([own["gate_proj.weight"].T, own["up_proj.weight"].T, own["down_proj.weight"]]),
        axis=0,
    )
    kept = np.sort(np.argsort(-norms)[:256])
    made = candidate(Mlp(256), given, "channel_magnitude")
    for name in ("gate_proj.weight", "up_proj.weight"):
        np.testing.assert_array_equal(made[name], weights(given)[name][kept])
    down = weights(given)["down_proj.weight"][:, kept]
    np.testing.assert_array_equal(made["down_proj.weight"], down)


@pytest.mark.parametrize("subblock", ["attention", "ffn"])
def test_a_no_op_has_no_weights(decoder: HeterogeneousDecoder, subblock: Subblock) -> None:
    assert candidate(NoOp(), calibration(decoder, subblock), "no_op") == {}


def test_every_initialiser_of_a_kind_is_tried_unless_some_are_named(
    decoder: HeterogeneousDecoder,
) -> None:
    given = calibration(decoder, "attention").calibration
    everything = initial_candidates(Gqa(1), given)
    assert everything.keys() == {"mean_pool", "first_head", "activation_weighted"}
    named = initial_candidates(Gqa(1), given, ["first_head", "product"])
    assert named.keys() == {"first_head"}
    assert initial_candidates(Linear(), given, ["first_head"]).keys() == {
        "product",
        "least_squares",
    }
    with pytest.raises(InputError, match="'men_pool' is not an initialiser") as caught:
        check_initialisers(["mean_pool", "men_pool"])
    assert "least_squares" in caught.value.remedy


def test_heads_that_cannot_be_shared_out_evenly_are_refused() -> None:
    raw = {
        "model_type": "llama", "hidden_size": 24, "num_attention_heads": 12,
        "num_key_value_heads": 6, "num_hidden_layers": 1, "intermediate_size": 8,
        "vocab_size": 8, "max_position_embeddings": 8,
    }  # fmt: skip
    config = ParentConfig.from_dict(raw, name="odd")
    given = without_tokens(config, make_subblock(Gqa(6), config))
    with pytest.raises(InputError, match="gqa_4 cannot be begun from 6 KV heads"):
        candidate(Gqa(4), given, "mean_pool")


@pytest.mark.parametrize(("subblock", "variant"), [("attention", Gqa(2)), ("ffn", Mlp(512))])
def test_the_parents_own_variant_is_the_parent(
    decoder: HeterogeneousDecoder, subblock: Subblock, variant: Variant
) -> None:
    given = calibration(decoder, subblock)
    made = candidate(variant, given, "parent")
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
    given = without_tokens(config, parent).calibration
    student = make_subblock(Gqa(1), config)
    student.load_state_dict(initial_candidates(Gqa(1), given, ["mean_pool"])["mean_pool"])
    with torch.no_grad():
        torch.testing.assert_close(student(x_BLD, rotary, None), parent(x_BLD, rotary, None))
