"""The losses against numpy and transformers; accumulation, recomputation, precision."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from puzzle_search.arch import ArchitectureSpec, BlockChoice
from puzzle_search.checkpoint import load_decoder
from puzzle_search.data import TokenBlocks
from puzzle_search.distill import DistillSettings, logit_losses
from puzzle_search.distill.losses import Distiller
from puzzle_search.distill.trainer import Trainer
from puzzle_search.distill.world import World
from puzzle_search.errors import InputError
from puzzle_search.model import HeterogeneousDecoder
from puzzle_search.model.dtypes import torch_dtype
from tests.distill.helpers import blocks_of, make_child
from tests.pico import Pico

TERMS = ("lm", "cosine", "kl")
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def child(pico: Pico, pico_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_child(pico, pico_library, tmp_path_factory.mktemp("losses") / "child")


@pytest.fixture(scope="module")
def blocks(pico: Pico) -> TokenBlocks:
    return blocks_of(pico, 512)


def trainer_of(pico: Pico, child: Path, **settings: object) -> tuple[Trainer, Distiller]:
    chosen = DistillSettings(**({"tokens": 512, "batch_tokens": 512} | settings))
    distiller = Distiller(
        load_decoder(pico.parent, dtype=torch_dtype(chosen.dtype)),
        load_decoder(child),
        recompute=chosen.activation_checkpointing,
    )
    return Trainer(distiller, chosen, ALONE), distiller


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def merged_child(pico: Pico) -> HeterogeneousDecoder:
    """One block for layers 0 and 1, the parent's last block behind it."""
    own = (pico.config.attention, pico.config.ffn)
    runs = [(0, 1), (2,)]
    choices = (BlockChoice(attention=own[0], ffn=own[1], layers=run) for run in runs)
    spec = ArchitectureSpec(parent="parent", blocks=tuple(choices))
    child = HeterogeneousDecoder(pico.config, spec)
    torch.manual_seed(1)
    for parameter in child.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return child


def test_the_losses_by_their_definitions(pico: Pico, blocks: TokenBlocks) -> None:
    """Parent by transformers, sums by numpy; the first block stands for layers 0 and 1."""
    child = merged_child(pico)
    distiller = Distiller(load_decoder(pico.parent), child)
    with torch.no_grad():
        _, found = distiller(blocks.ids, blocks.document_starts, dict.fromkeys(TERMS, 1.0))
    parent, after = LlamaForCausalLM.from_pretrained(pico.parent), []
    for layer in parent.model.layers:
        layer.register_forward_hook(
            lambda module, inputs, output: after.append(output.double().numpy())
        )
    with torch.no_grad():
        parent_p = softmax(parent(blocks.ids).logits.double().numpy())
        states = [state.double().numpy() for state in child.block_states(blocks.ids)]
        child_p = softmax(child(blocks.ids).double().numpy())
    cosine = 0.0
    for ours, theirs in zip(states, after[1:], strict=True):
        dot = (ours * theirs).sum(-1)
        norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        cosine += (1 - dot / norms).sum() / 2
    kl = (parent_p * (np.log(parent_p) - np.log(child_p))).sum()
    lm = 0.0
    for row, starts in zip(range(len(blocks.ids)), blocks.document_starts, strict=True):
        for place in range(blocks.ids.shape[1] - 1):
            if not starts[place + 1]:
                lm -= np.log(child_p[row, place, blocks.ids[row, place + 1]])
    assert blocks.document_starts[:, 1:].any()  # some targets are left out
    assert float(found["cosine"]) == pytest.approx(cosine, rel=1e-5)
    assert float(found["kl"]) == pytest.approx(kl, rel=1e-5)
    assert float(found["lm"]) == pytest.approx(lm, rel=1e-5)


def test_a_copy_of_the_parent_has_nothing_to_learn(pico: Pico, blocks: TokenBlocks) -> None:
    trainer, _ = trainer_of(pico, pico.parent)
    found = trainer.held_out(blocks)
    assert found["held_out_kl"] == pytest.approx(0, abs=1e-6)
    assert found["held_out_cosine"] == pytest.approx(0, abs=1e-6)
    assert found["held_out_lm"] > 1


def by_autograd(distiller: Distiller, blocks: TokenBlocks, weights: dict[str, float]) -> list:
    """The loss by torch's own functions on whole logits, and its gradients."""
    child, parent = distiller.child, distiller.parent
    logits, targets = child(blocks.ids), blocks.ids.roll(-1, dims=1)
    with torch.no_grad():
        parent_p = parent(blocks.ids).softmax(-1)
    kl = F.kl_div(logits.log_softmax(-1), parent_p, reduction="sum")
    counts = ~blocks.document_starts.roll(-1, dims=1)
    counts[:, -1] = False
    loss = weights["kl"] * kl
    loss = loss + weights["lm"] * F.cross_entropy(logits[counts], targets[counts], reduction="sum")
    loss.backward()
    return [loss.item(), *(parameter.grad for parameter in child.parameters())]


@pytest.mark.parametrize("scale", [1.0, 7.0])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.25, 2.0)])
def test_gradients_are_those_of_autograd(
    pico: Pico,
    child: Path,
    blocks: TokenBlocks,
    monkeypatch: pytest.MonkeyPatch,
    weights: tuple[float, float],
    scale: float,
) -> None:
    """300 tokens in the vocabulary: a chunk of 200 of the 512 tokens, slices of 70."""
    monkeypatch.setattr(logit_losses, "_CHUNK_LOGITS", 300 * 200)
    monkeypatch.setattr(logit_losses, "_SLICE_LOGITS", 300 * 70)
    named = dict(zip(("kl", "lm"), weights, strict=True))
    expected = by_autograd(trainer_of(pico, child)[1], blocks, named)
    _, distiller = trainer_of(pico, child)
    asked = {term: weight for term, weight in named.items() if weight}
    loss, parts = distiller(blocks.ids, blocks.document_starts, asked)
    (loss * scale).backward()
    assert sum(part.item() for part in parts.values()) == pytest.approx(expected[0], rel=1e-5)
    assert loss.item() == pytest.approx(expected[0], rel=1e-5)
    found = [parameter.grad / scale for parameter in distiller.child.parameters()]
    largest = max(float(gradient.abs().max()) for gradient in expected[1:])
    for one, other in zip(found, expected[1:], strict=True):
        assert float((one - other).abs().max()) < 1e-5 * largest


class Rows(TorchDispatchMode):
    """The most rows of results that are as wide as the vocabulary, by number type."""

    def __init__(self) -> None:
        super().__init__()
        self.most: dict[torch.dtype, int] = defaultdict(int)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim > 1 and result.shape[-1] == 300:
            rows = result.numel() // 300
            self.most[result.dtype] = max(self.most[result.dtype], rows)
        return result


def test_logits_of_all_tokens_never_stand_in_memory(
    pico: Pico, child: Path, blocks: TokenBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_losses, "_CHUNK_LOGITS", 300 * 200)
    monkeypatch.setattr(logit_losses, "_SLICE_LOGITS", 300 * 70)
    trainer, _ = trainer_of(pico, child, dtype="bf16", losses=TERMS)
    with Rows() as seen:
        trainer._means(blocks, TERMS, train=True)
    # The gradient of a chunk in bf16; in fp32 a slice.
    assert seen.most == {torch.bfloat16: 200, torch.float32: 70}


def gradients_of(pico: Pico, child: Path, blocks: TokenBlocks, **settings: object) -> list:
    trainer, distiller = trainer_of(pico, child, losses=TERMS, **settings)
    trainer._means(blocks, TERMS, train=True)
    return [parameter.grad for parameter in distiller.child.parameters()]


@pytest.mark.parametrize(
    "settings",
    [
        {"micro_batch_tokens": 32},
        {"micro_batch_tokens": 96},  # pieces of 3, 3, ..., 1 blocks
        {"activation_checkpointing": True},
    ],
)
def test_what_saves_memory_leaves_the_gradient(
    pico: Pico, child: Path, blocks: TokenBlocks, settings: dict[str, object]
) -> None:
    whole = gradients_of(pico, child, blocks)
    found = gradients_of(pico, child, blocks, **settings)
    scale = max(float(gradient.abs().max()) for gradient in whole)
    for one, other in zip(whole, found, strict=True):
        assert float((one - other).abs().max()) < 1e-6 * scale


@pytest.mark.parametrize("losses", [("kl",), ("lm",), ("cosine",)])
def test_each_loss_goes_down_alone(
    pico: Pico, child: Path, blocks: TokenBlocks, losses: tuple[str]
) -> None:
    trainer, _ = trainer_of(pico, child, losses=losses)
    found = [trainer.step(blocks, 1e-3, number=step)["loss"] for step in range(8)]
    assert found[-1] < 0.97 * found[0]


def test_bf16_keeps_updates_that_its_weights_could_not_hold(
    pico: Pico, child: Path, blocks: TokenBlocks
) -> None:
    trainer, distiller = trainer_of(pico, child, dtype="bf16")
    before = {name: p.detach().clone() for name, p in distiller.child.named_parameters()}
    found = trainer.step(blocks, 1e-6, number=1)
    reference, _ = trainer_of(pico, child)
    assert found["loss"] == pytest.approx(reference.step(blocks, 1e-6, number=1)["loss"], rel=0.02)
    for name, parameter in distiller.child.named_parameters():
        assert parameter.dtype == torch.float32
        moved = (parameter.detach() - before[name]).abs().max()
        assert 0 < float(moved) < 2e-6  # Adam's first step is the learning rate itself
    weight = distiller.child.head.weight
    same = weight.bfloat16() == before["head.weight"].bfloat16()
    assert same.float().mean() > 0.9


def test_too_little_memory_says_what_to_do(
    pico: Pico, child: Path, blocks: TokenBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    trainer, _ = trainer_of(pico, child)
    monkeypatch.setattr(HeterogeneousDecoder, "block_states", out_of_memory)
    with pytest.raises(InputError, match="step 7 ran out of GPU memory") as caught:
        trainer.step(blocks, 1e-3, number=7)
    assert "--micro-batch-tokens" in caught.value.remedy


def test_a_child_of_another_parent(pico: Pico) -> None:
    other = load_decoder(pico.parent)
    with pytest.raises(InputError, match="merged layers"):
        Distiller(merged_child(pico), other)
