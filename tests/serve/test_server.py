"""The endpoint through OpenAI's own client, held against the reference decoder."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="pip install 'puzzle-search[serve]'")
openai = pytest.importorskip("openai", reason="pip install openai")

from puzzle_search.serve.worker import Worker  # noqa: E402
from tests.serve.pico_server import (  # noqa: E402
    MAX_LENGTH,
    MAX_WAITING,
    SLOTS,
    Alone,
    served,
    write_chat_child,
)

PROMPTS = [" ".join(("ab", "cd efg", "hi", "q rst a")[n % 4 :] * (1 + n % 5)) for n in range(64)]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_child(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def alone(child: Path) -> Alone:
    return Alone(child)


@pytest.fixture(scope="module")
def server(child: Path) -> Iterator[tuple[str, Worker]]:
    with served(child) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: tuple[str, Worker]) -> Any:
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)


def metric(address: str, name: str) -> float:
    """A counter of ``/metrics``, its labels summed up."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    rows = [line for line in lines if line.startswith(name) and line[len(name)] in " {"]
    return sum(float(row.rpartition(" ")[2]) for row in rows)


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail("did not come about")


def test_64_at_once_get_what_each_gets_alone(server: tuple[str, Worker], alone: Alone) -> None:
    counts = [4 + n % 13 for n in range(len(PROMPTS))]

    async def ask_all() -> list[Any]:
        client = openai.AsyncOpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)
        return await asyncio.gather(
            *(
                client.completions.create(
                    model="pico", prompt=prompt, max_tokens=count, temperature=0
                )
                for prompt, count in zip(PROMPTS, counts, strict=True)
            )
        )

    before = metric(server[0], "puzzle_search_output_tokens_total")
    answers = asyncio.run(ask_all())
    made = 0
    for prompt, count, answer in zip(PROMPTS, counts, answers, strict=True):
        ids = alone.ids(prompt)
        tokens = alone.tokens(ids, count)
        assert answer.choices[0].text == alone.text(ids, count)
        assert answer.usage.prompt_tokens == len(ids)
        assert answer.usage.completion_tokens == len(tokens)
        assert answer.choices[0].finish_reason == ("length" if len(tokens) == count else "stop")
        made += len(tokens)
    assert metric(server[0], "puzzle_search_output_tokens_total") - before == made
    assert metric(server[0], "puzzle_search_requests_running") == 0


def test_a_stream_is_the_answer_in_pieces(client: Any, alone: Alone) -> None:
    ids = alone.ids(PROMPTS[3])
    events = list(
        client.completions.create(
            model="pico",
            prompt=ids,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert len(events) > 3
    assert "".join(e.choices[0].text for e in events[:-1]) == alone.text(ids, 24)
    assert [e.choices[0].finish_reason for e in events[:-1]].count(None) == len(events) - 2
    assert events[-1].choices == []
    assert events[-1].usage.completion_tokens == len(alone.tokens(ids, 24))


def test_a_conversation_goes_through_the_chat_template(client: Any, alone: Alone) -> None:
    messages = [
        {"role": "system", "content": "ab"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "cd"}, {"type": "text", "text": "e"}],
        },
    ]
    expected = alone.text(alone.ids("system ab user cde "), 12)
    asked = {"model": "pico", "messages": messages, "max_completion_tokens": 12, "temperature": 0}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].message.role == "assistant"
    with client.chat.completions.create(**asked, stream=True) as stream:
        assert "".join(event.choices[0].delta.content for event in stream) == expected


def test_several_prompts_are_as_many_choices(client: Any, alone: Alone) -> None:
    answer = client.completions.create(
        model="pico", prompt=PROMPTS[:3], max_tokens=8, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for prompt, choice in zip(PROMPTS, answer.choices, strict=False):
        assert choice.text == alone.text(alone.ids(prompt), 8)


def test_a_stop_string_ends_the_text_before_it(client: Any, alone: Alone) -> None:
    ids = alone.ids(PROMPTS[1])
    whole = alone.text(ids, 40)
    stop = whole[len(whole) // 2 :][:3]
    answer = client.completions.create(
        model="pico", prompt=ids, max_tokens=40, temperature=0, stop=["\u2603", stop]
    )
    assert answer.choices[0].text == whole[: whole.find(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 40


def test_the_models_own_end_may_be_ignored(client: Any, alone: Alone) -> None:
    answer = client.completions.create(
        model="pico", prompt="ab", max_tokens=64, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 64
    assert answer.choices[0].finish_reason == "length"


def test_a_seed_decides_a_sample(client: Any) -> None:
    def drawn(seed: int | None) -> str:
        answer = client.completions.create(
            model="pico", prompt="ab", max_tokens=16, seed=seed, top_p=0.9
        )
        text: str = answer.choices[0].text
        return text

    assert drawn(7) == drawn(7)
    assert len({drawn(7), drawn(8), drawn(None), drawn(None)}) == 4


def test_an_answer_may_fill_the_slot(client: Any, alone: Alone) -> None:
    answer = client.chat.completions.create(
        model="pico",
        messages=[{"role": "user", "content": "ab"}],
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    assert answer.usage.total_tokens == MAX_LENGTH


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": [1, 9999]}, "token ids outside"),
        ({"prompt": [-1]}, "token ids outside"),
        ({"prompt": "ab " * 200}, "limit is 128"),
        ({"max_tokens": 127}, "limit is 128"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 2}, "n: "),
        ({"logprobs": 3}, "logprobs"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"stop": [""]}, "stop"),
        ({"extra_body": {"guided_regex": "a+"}}, "guided_regex"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(
    change: dict[str, Any], told: str, client: Any
) -> None:
    asked = {"model": "pico", "prompt": "ab cd", "max_tokens": 4} | change
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=told):
            client.completions.create(**asked, stream=stream)


def test_another_model_is_not_found(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["pico"]
    assert client.models.retrieve("pico").id == "pico"
    with pytest.raises(openai.NotFoundError, match="'pico' is"):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError, match="'pico' is"):
        client.completions.create(model="gpt", prompt="ab")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/v1/completions", "{", {}, 400),
        ("POST", "/v1/completions", "[]", {}, 400),
        ("POST", "/v1/completions", "", {"Content-Length": str(2**23)}, 413),
        ("POST", "/v1/completions", "", {"Transfer-Encoding": "chunked"}, 411),
        ("GET", "/v1/completions", "", {}, 405),
        ("GET", "/v1/nothing", "", {}, 404),
        ("GET", "/health", "", {}, 200),
    ],
)
def test_status_of_raw_requests(
    method: str,
    path: str,
    body: str,
    headers: dict[str, str],
    status: int,
    server: tuple[str, Worker],
) -> None:
    connection = http.client.HTTPConnection(server[0].removeprefix("http://"))
    connection.putrequest(method, path)
    for name, value in ({"Content-Type": "application/json"} | headers).items():
        connection.putheader(name, value)
    if not headers:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body.encode() or None)
    answer = connection.getresponse()
    assert answer.status == status
    if status != 200:
        assert json.loads(answer.read())["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_slot(
    stream: bool, server: tuple[str, Worker], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, worker = server
    before = cancelled(address)
    asked = {"model": "pico", "prompt": "ab", "max_tokens": 120, "stream": stream}
    with monkeypatch.context() as patch:
        patch.setattr(worker._scheduler, "_decode", list)  # none gets beyond its first token
        connections = []
        for _ in range(SLOTS + 3):
            connection = http.client.HTTPConnection(address.removeprefix("http://"))
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(asked), headers)
            connections.append(connection)
        wait_until(lambda: load(address) == (SLOTS, 3))
        for connection in connections:
            connection.close()
        wait_until(lambda: load(address) == (0, 0))
    assert cancelled(address) == before + SLOTS + 3
    assert client.completions.create(model="pico", prompt="ab", max_tokens=4).choices


def load(address: str) -> tuple[float, float]:
    """Requests that run, and that wait."""
    return (
        metric(address, "puzzle_search_requests_running"),
        metric(address, "puzzle_search_requests_waiting"),
    )


def cancelled(address: str) -> float:
    return metric(address, 'puzzle_search_requests_total{finish="cancelled"}')


def test_too_many_are_told_to_come_back(server: tuple[str, Worker]) -> None:
    prompts = [[3, 4]] * (SLOTS + MAX_WAITING + 1)
    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.RateLimitError, match="too many") as caught:
        client.completions.create(model="pico", prompt=prompts, max_tokens=2)
    assert caught.value.response.headers["Retry-After"] == "1"


def test_a_key_is_asked_for_below_v1_alone(child: Path) -> None:
    with served(child, api_key="s3cret") as (address, _):
        for key in ("wrong", "s3cre", "s3crett"):
            stranger = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
            with pytest.raises(openai.AuthenticationError, match="API key"):
                stranger.models.list()
        known = openai.OpenAI(base_url=f"{address}/v1", api_key="s3cret", max_retries=0)
        assert known.completions.create(model="pico", prompt="ab", max_tokens=2).choices
        assert metric(address, "puzzle_search_requests_total") == 1


def test_a_worker_that_fails_is_told(child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(child) as (address, worker):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

        def broken() -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(worker._scheduler, "turn", broken)
        monkeypatch.setattr("threading.excepthook", lambda _: None)
        for _ in range(2):  # while it fails, and after
            with pytest.raises(openai.InternalServerError, match="model has failed"):
                client.completions.create(model="pico", prompt="ab")
        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        connection.request("GET", "/health")
        assert connection.getresponse().status == 503
