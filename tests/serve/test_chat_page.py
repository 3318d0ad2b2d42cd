"""The chat page in headless Chromium: a child and its parent, each by its own server."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="pip install 'puzzle-search[serve]'")

from puzzle_search.arch import ArchitectureSpec
from tests.export.engine_process import config_of, write_random_child
from tests.report.browser import started
from tests.serve.pico_server import PAIRS, Alone, served, write_chat_child

PROMPT, TOKENS, KEY = "ab cd", 12, "secret"
SPEED = re.compile(rf"[\d.]+ tokens/s, first after \d+ ms, {TOKENS} tokens")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("chat")
    child = write_chat_child(folder)
    spec = ArchitectureSpec.of("pico", [("gqa_4", "mlp_512")] * len(PAIRS))
    parent = write_random_child(
        folder / "parent", config_of(len(PAIRS)), spec, folder / "tokenizer", seed=1
    )
    return child, parent


@pytest.fixture(scope="module")
def addresses(models: tuple[Path, Path]) -> Iterator[tuple[str, str]]:
    child, parent = models
    with served(child) as (one, _), served(parent, api_key=KEY) as (other, _):
        yield one, other


@pytest.mark.browser
def test_two_models_answer_the_same_prompt_side_by_side(
    models: tuple[Path, Path], addresses: tuple[str, str]
) -> None:
    wrong: list[str] = []
    with started() as browser:
        page = browser.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((*addresses, "data:")) else wrong.append(request.url)
            ),
        )
        page.goto(f"{addresses[0]}/?beside={addresses[1]}")
        page.fill("#prompt", PROMPT)
        page.fill("#tokens", str(TOKENS))
        page.select_option("#form", "completions")
        page.click("#send")
        page.wait_for_selector("#send:enabled")
        left, right = (page.locator("section").nth(n) for n in range(2))
        assert SPEED.fullmatch(left.locator(".speed").inner_text())
        assert "API key" in right.locator(".speed").inner_text()
        page.fill("#key", KEY)
        page.click("#clear")
        page.click("#send")
        page.wait_for_function(
            "() => document.querySelectorAll('.speed')[1].textContent.includes('tokens/s')"
        )
        for side, model in zip((left, right), models, strict=True):
            alone = Alone(model)
            expected = alone.text(alone.ids(PROMPT), TOKENS)
            said = side.locator(".said").evaluate_all("all => all.map(one => one.textContent)")
            assert said == [PROMPT, expected]
            assert SPEED.fullmatch(side.locator(".speed").inner_text())
            assert side.locator("h2").inner_text() == "pico"
        assert not wrong


@pytest.mark.browser
def test_a_conversation_keeps_what_was_said(
    models: tuple[Path, Path], addresses: tuple[str, str]
) -> None:
    with started() as browser:
        page = browser.new_page()
        page.goto(addresses[0])
        page.fill("#tokens", str(TOKENS))
        for _ in range(2):
            page.fill("#prompt", PROMPT)
            page.press("#prompt", "Enter")
            page.wait_for_selector("#send:disabled")
            page.wait_for_selector("#send:enabled")
        said = page.locator("section").first.locator(".said")
        texts: list[str] = said.evaluate_all("all => all.map(one => one.textContent)")
    alone = Alone(models[0])
    first = alone.text(alone.ids(f"user {PROMPT} "), TOKENS)
    told = f"user {PROMPT} assistant {first} user {PROMPT} "
    assert texts == [PROMPT, first, PROMPT, alone.text(alone.ids(told), TOKENS)]


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost", True),
        ("https://elsewhere.example", False),
        ("http://127.0.0.1.elsewhere.example", False),
    ],
)
def test_only_pages_of_this_machine_may_read_answers(
    origin: str, allowed: bool, addresses: tuple[str, str]
) -> None:
    connection = http.client.HTTPConnection(addresses[1].removeprefix("http://"))
    headers: dict[str, Any] = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    connection.request("OPTIONS", "/v1/completions", headers=headers)
    answer = connection.getresponse()
    assert (answer.headers["Access-Control-Allow-Origin"] == origin) is allowed
