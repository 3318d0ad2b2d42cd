"""A decoder as EleutherAI's lm-evaluation-harness (``lm_eval``) asks one.

Imported only where tasks are run: it needs the extra ``eval``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from puzzle_search.errors import InputError
from puzzle_search.model import HeterogeneousDecoder, Sampling, generate
from puzzle_search.model.losses import log_probs
from puzzle_search.progress import Progress

Answer = TypeVar("Answer")

_MAX_NEW_TOKENS = 256  # where a task sets none, as for the harness's own models


class DecoderLM(TemplateLM):  # type: ignore[misc]  # has no type information
    """Answers the requests of tasks; tokens are made as the harness's own ``HFLM`` makes them.

    Args:
        decoder: parent or child.
        tokenizer: of the same checkpoint.
        batch_size: requests that pass at once.
    """

    def __init__(
        self, decoder: HeterogeneousDecoder, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> None:
        super().__init__()
        self.tokenizer: Any = tokenizer
        self._decoder = decoder
        self._batch_size = batch_size
        self._torch_device = decoder.embedding.weight.device

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        token = self.tokenizer.eos_token_id
        assert token is not None, "checked when tasks are run"
        return int(token)

    @property
    def _stop_tokens(self) -> frozenset[int]:
        return frozenset({self.eot_token_id, *self._decoder.config.stop_tokens})

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        token = self.tokenizer.bos_token_id
        return self.eot_token_id if token is None else int(token)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Token ids; by default with the special tokens that the tokenizer adds, once."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[object, list[int], list[int]]],
        disable_tqdm: bool = False,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would give it."""

        def answer(indices: list[int]) -> list[tuple[float, bool]]:
            texts = [requests[i][1] + requests[i][2] for i in indices]
            # Too long a context loses its beginning; the last token is predicted, never read.
            read = [text[-(self._decoder.config.max_context + 1) :][:-1] for text in texts]
            longest = max(map(len, read))
            padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in read])
            hidden_BLD = self._decoder.hidden_states(padded.to(self._torch_device))
            return [
                self._score(hidden_BLD[row, : len(ids)], requests[i][2])
                for row, (i, ids) in enumerate(zip(indices, read, strict=True))
            ]

        return self._in_batches(answer, [-len(r[1]) - len(r[2]) for r in requests])

    def _score(self, hidden_LD: torch.Tensor, continuation: list[int]) -> tuple[float, bool]:
        if len(continuation) > len(hidden_LD):
            raise InputError(
                f"a task asks for the likelihood of {len(continuation)} tokens at once; "
                f"{self._decoder.config.name} can attend to {self._decoder.config.max_context}",
                remedy="leave out that task",
            )
        logits_LV = self._decoder.logits(hidden_LD[-len(continuation) :])
        target_L = torch.tensor(continuation, device=logits_LV.device)
        chosen_L1 = log_probs(logits_LV).gather(1, target_L[:, None])
        return float(chosen_L1.sum()), bool((logits_LV.argmax(-1) == target_L).all())

    def _in_batches(
        self, answer: Callable[[list[int]], list[Answer]], order: Sequence[Any]
    ) -> list[Answer]:
        """Answers to all requests in their own order, asked in batches of neighbours in ``order``.

        ``answer`` takes indices of requests.
        """
        ranked = sorted(range(len(order)), key=lambda index: order[index])
        answers: dict[int, Answer] = {}
        with Progress("tasks").over(len(order)) as advance:
            for start in range(0, len(ranked), self._batch_size):
                indices = ranked[start : start + self._batch_size]
                answers |= zip(indices, answer(indices), strict=True)
                for index in indices:
                    advance(f"request {index}")
        return [answers[index] for index in range(len(order))]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows as long as the model can attend to."""
        windows = [
            [make_disjoint_window(window) for window in self._rolling_windows(request.args[0])]
            for request in requests
        ]
        scored = iter(self._loglikelihood_tokens([(None, *w) for text in windows for w in text]))
        return [sum(next(scored)[0] for _ in text) for text in windows]

    def _rolling_windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        windows: Iterator[tuple[list[int], list[int]]] = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self._decoder.config.max_context,
            context_len=1,
        )
        return windows

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Completions, up to a stop sequence that is left out."""
        asked = [_Generation(**_known_settings(request.args[1])) for request in requests]
        room = [
            self._decoder.config.max_context - generation.max_new_tokens for generation in asked
        ]
        if min(room) < 1:
            raise InputError(
                f"a task generates more tokens than the {self._decoder.config.max_context} that "
                f"{self._decoder.config.name} can attend to",
                remedy="leave out that task, or lower max_gen_toks in it",
            )
        prompts = [
            self.tok_encode(request.args[0])[-tokens:]
            for request, tokens in zip(requests, room, strict=True)
        ]
        # Prompts of one length need no padding, which the decoder does not know.
        alike: defaultdict[tuple[int, _Generation], list[int]] = defaultdict(list)
        for index, (prompt, generation) in enumerate(zip(prompts, asked, strict=True)):
            alike[len(prompt), generation].append(index)
        texts: dict[int, str] = {}
        with Progress("generate").over(len(asked)) as advance:
            for (_, generation), indices in alike.items():
                for start in range(0, len(indices), self._batch_size):
                    batch = indices[start : start + self._batch_size]
                    made = self._complete([prompts[index] for index in batch], generation)
                    texts |= zip(batch, made, strict=True)
                    for index in batch:
                        advance(f"request {index}")
        return [texts[index] for index in range(len(asked))]

    def _complete(self, prompts: list[list[int]], generation: _Generation) -> list[str]:
        tokens: list[list[int]] = [[] for _ in prompts]
        texts = [""] * len(prompts)
        for next_B in generate(
            self._decoder,
            torch.tensor(prompts, device=self._torch_device),
            max_new_tokens=generation.max_new_tokens,
            sampling=Sampling(temperature=generation.temperature, top_p=generation.top_p),
            stop_tokens=self._stop_tokens,
        ):
            for row, token in enumerate(next_B.tolist()):
                tokens[row].append(token)
            texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
            ended = [not self._stop_tokens.isdisjoint(row) for row in tokens]
            if all(
                end or any(stop in text for stop in generation.until)
                for end, text in zip(ended, texts, strict=True)
            ):
                break
        return [postprocess_generated_text(text, list(generation.until), None) for text in texts]


@dataclass(frozen=True, kw_only=True)
class _Generation:
    """What a task asks of a completion."""

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float


def _known_settings(asked: dict[str, Any]) -> dict[str, Any]:
    settings = dict(normalize_gen_kwargs(asked, _MAX_NEW_TOKENS))
    sampled = settings.pop("do_sample")
    temperature = settings.pop("temperature", 1.0 if sampled else 0.0)
    known = {
        "until": tuple(stop for stop in settings.pop("until") if stop),
        "max_new_tokens": settings.pop("max_gen_toks"),
        "temperature": float(temperature) if sampled else 0.0,
        "top_p": float(settings.pop("top_p", 1.0)),
    }
    if settings:
        raise InputError(
            f"a task sets {', '.join(sorted(settings))} for generation, which is not known here",
            remedy="leave out that task, or those settings",
        )
    return known
