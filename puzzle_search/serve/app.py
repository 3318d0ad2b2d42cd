"""The HTTP side: OpenAI's completions and chat completions, a chat page, health and metrics."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from transformers import PreTrainedTokenizerBase

from puzzle_search.data import conversation_tokens, text_tokens
from puzzle_search.errors import InputError
from puzzle_search.serve.guard import Guard, error_response
from puzzle_search.serve.protocol import ChatRequest, CompletionRequest
from puzzle_search.serve.worker import BusyError, ClientRequest, Piece, Worker, WorkerDiedError

T = TypeVar("T")
_GONE = 499  # the client has closed the connection: nobody reads the answer
_INVALID = "invalid_request_error"
# Of pages whose scripts may read answers: a chat page asks two servers of this machine.
_LOOPBACK_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
Choice = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ServedName:
    """What clients call the model, and since when it is here, in seconds of the epoch."""

    name: str
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, kw_only=True)
class _Form:
    """How one of the two endpoints writes its answers."""

    prefix: str
    whole: str
    part: str
    choice: Callable[[int, str, str | None], Choice]
    delta: Callable[[int, str, str | None], Choice]


def _text_choice(index: int, text: str, finish: str | None) -> Choice:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _message_choice(index: int, text: str, finish: str | None) -> Choice:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}


def _message_delta(index: int, text: str, finish: str | None) -> Choice:
    delta = {"role": "assistant", "content": text}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


_COMPLETION = _Form(
    prefix="cmpl",
    whole="text_completion",
    part="text_completion",
    choice=_text_choice,
    delta=_text_choice,
)
_CHAT = _Form(
    prefix="chatcmpl",
    whole="chat.completion",
    part="chat.completion.chunk",
    choice=_message_choice,
    delta=_message_delta,
)


class _GoneError(Exception):
    """The client has closed the connection."""


def make_app(
    worker: Worker,
    tokenizer: PreTrainedTokenizerBase,
    served: ServedName,
    *,
    api_key: str | None = None,
) -> ASGIApp:
    """The server's application.

    Args:
        worker: begins and ends with the application.
        tokenizer: of the model.
        served: the model's name.
        api_key: that requests below ``/v1`` must carry, if any.
    """

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            worker.stop()

    app = FastAPI(lifespan=working, docs_url=None, redoc_url=None, openapi_url=None)
    card = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "puzzle-search",
        "max_model_len": worker.max_length,
    }

    page = Path(__file__).with_name("chat.html").read_text(encoding="utf-8")

    def chat_page() -> Response:
        return HTMLResponse(page)

    def health() -> Response:
        return Response(status_code=200 if worker.alive else 503)

    def metrics() -> Response:
        return Response(worker.metrics.text(), media_type="text/plain; version=0.0.4")

    def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    def model(name: str) -> dict[str, Any]:
        _check_name(name, served)
        return card

    async def completions(body: CompletionRequest, http: Request) -> Response | dict[str, Any]:
        _check_name(body.model, served)
        prompts = [
            text_tokens(prompt, tokenizer, "the prompt") if isinstance(prompt, str) else prompt
            for prompt in body.prompts
        ]
        if not prompts:
            raise InputError("there is no prompt", remedy="give at least one")
        asked = [_asked(body, prompt, body.max_tokens, worker) for prompt in prompts]
        return await _answer(_COMPLETION, body, asked, http)

    async def chat(body: ChatRequest, http: Request) -> Response | dict[str, Any]:
        _check_name(body.model, served)
        messages = [message.as_dict() for message in body.messages]
        prompt = conversation_tokens(messages, tokenizer)
        wanted = body.max_completion_tokens or body.max_tokens
        return await _answer(_CHAT, body, [_asked(body, prompt, wanted, worker)], http)

    async def _answer(
        form: _Form,
        body: CompletionRequest | ChatRequest,
        asked: list[ClientRequest],
        http: Request,
    ) -> Response | dict[str, Any]:
        head = {
            "id": f"{form.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
        }
        pieces = worker.stream(asked)
        if body.stream:
            # What is refused is refused before the stream begins.
            first: tuple[int, Piece] = await _unless_gone(http, anext(pieces))
            events = _events(form, head, first, pieces, asked if body.wants_usage else None)
            return StreamingResponse(events, media_type="text/event-stream")
        texts, finishes, tokens = await _unless_gone(http, _collected(pieces, len(asked)))
        choices = [
            form.choice(index, text, finish)
            for index, (text, finish) in enumerate(zip(texts, finishes, strict=True))
        ]
        return head | {"object": form.whole, "choices": choices, "usage": _usage(asked, tokens)}

    for path, answer in (
        ("/", chat_page),
        ("/health", health),
        ("/metrics", metrics),
        ("/v1/models", models),
        ("/v1/models/{name:path}", model),
    ):
        app.add_api_route(path, answer, methods=["GET"], response_model=None)
    for path, generate in (("/v1/completions", completions), ("/v1/chat/completions", chat)):
        app.add_api_route(path, generate, methods=["POST"], response_model=None)
    for error, told in _ERRORS.items():
        app.add_exception_handler(error, told)
    return CORSMiddleware(
        Guard(app, api_key=api_key),
        allow_origin_regex=_LOOPBACK_ORIGIN,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type"],
    )


def _invalid(_: Request, error: RequestValidationError) -> Response:
    told = [
        f"{'.'.join(str(part) for part in one['loc'][1:]) or 'the body'}: {one['msg']}"
        for one in error.errors()
    ]
    return error_response(400, "; ".join(told), kind=_INVALID)


def _refused(_: Request, error: InputError) -> Response:
    return error_response(400, f"{error.message}; {error.remedy}", kind=_INVALID)


def _other(_: Request, error: HTTPException) -> Response:
    return error_response(error.status_code, str(error.detail), kind=_INVALID)


def _busy(_: Request, error: BusyError) -> Response:
    response = error_response(429, "too many requests wait; try later", kind="rate_limit_error")
    response.headers["Retry-After"] = "1"
    return response


def _died(_: Request, error: WorkerDiedError) -> Response:
    return error_response(503, "the model has failed; see the server's log", kind="server_error")


def _gone(_: Request, error: _GoneError) -> Response:
    return Response(status_code=_GONE)


_ERRORS: dict[type[Exception], Any] = {
    RequestValidationError: _invalid,
    InputError: _refused,
    HTTPException: _other,
    BusyError: _busy,
    WorkerDiedError: _died,
    _GoneError: _gone,
}


def _check_name(name: str, served: ServedName) -> None:
    if name != served.name:
        raise HTTPException(404, f"the model {name!r} is not here; {served.name!r} is")


def _asked(
    body: CompletionRequest | ChatRequest, prompt: list[int], wanted: int | None, worker: Worker
) -> ClientRequest:
    return ClientRequest(
        prompt=prompt,
        output_len=max(1, worker.max_length - len(prompt)) if wanted is None else wanted,
        sampling=body.sampling,
        stop=body.stops,
        ignore_end=body.ignore_eos,
    )


def _usage(asked: list[ClientRequest], tokens: list[int]) -> dict[str, int]:
    prompt, output = sum(len(one.prompt) for one in asked), sum(tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }


async def _collected(
    pieces: AsyncIterator[tuple[int, Piece]], count: int
) -> tuple[list[str], list[str | None], list[int]]:
    texts, finishes, tokens = [""] * count, [""] * count, [0] * count
    async for index, piece in pieces:
        texts[index] += piece.text
        finishes[index], tokens[index] = piece.finish or "", piece.tokens
    return texts, list(finishes), tokens


async def _events(
    form: _Form,
    head: dict[str, Any],
    first: tuple[int, Piece],
    pieces: AsyncIterator[tuple[int, Piece]],
    counted: list[ClientRequest] | None,
) -> AsyncIterator[str]:
    """Server-sent events; with ``counted`` the last one has the numbers of tokens."""
    head = head | {"object": form.part}
    tokens: dict[int, int] = {}

    def event(index: int, piece: Piece) -> str:
        tokens[index] = piece.tokens
        return _event(head | {"choices": [form.delta(index, piece.text, piece.finish)]})

    async with aclosing(pieces):  # type: ignore[type-var]  # a generator
        yield event(*first)
        try:
            async for index, piece in pieces:
                yield event(index, piece)
        except WorkerDiedError:
            yield _event({"error": {"message": "the model has failed", "type": "server_error"}})
            return
    if counted is not None:
        yield _event(head | {"choices": [], "usage": _usage(counted, list(tokens.values()))})
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def _unless_gone(http: Request, work: Awaitable[T]) -> T:
    """Wait for work, and drop it when the client goes.

    Raises:
        _GoneError: it has gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _GoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
