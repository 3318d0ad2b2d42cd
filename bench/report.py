"""How fast a large page is: 500 points of a frontier, 126 layers, in headless Chromium.

python bench/report.py [--chromium /usr/bin/chromium]

The page is made from random children of a parent with the shape of Llama-3.1-405B, opened from disk
several times on a phone's and a desktop's width, and walked along. Interactive is when the last
picture is drawn and the page answers; a step is a press of the arrow key until the next frame.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from puzzle_search.report.frontier_file import FORMAT, FRONTIER_FILE
from puzzle_search.report.page.data import report_data
from puzzle_search.report.page.render import render_page
from puzzle_search.report.page.sources import find_sources
from puzzle_search.resources import resource
from puzzle_search.solve.question.setting import AskedSetting

POINTS, LAYERS, OPENED, STEPS = 500, 126, 5, 50
SHAPE = {
    "num_hidden_layers": LAYERS,
    "hidden_size": 16384,
    "num_attention_heads": 128,
    "intermediate_size": 53248,
}
ATTENTION, FFN = ("gqa_8", "gqa_4", "linear", "no_op"), ("mlp_53248", "mlp_26624", "no_op")
WIDTHS = {"desktop": 1280, "phone": 390}


def make_page(folder: Path) -> dict[str, float]:
    """Write ``report.html``; seconds for its data and for the page, and its size."""
    model = folder / "llama-405b"
    model.mkdir()
    config = json.loads(resource("examples", "llama-3.1-70b", "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | SHAPE))
    random.seed(0)
    points = [
        {
            "status": "optimal",
            "score": number / POINTS,
            "gap": 0.0,
            "scenarios": [],
            "blocks": [
                {"attention": random.choice(ATTENTION), "ffn": random.choice(FFN)}
                for _ in range(LAYERS)
            ],
        }
        for number in range(POINTS)
    ]
    asked = {"model": str(model), "gpu": "h100"}
    frontier = {
        "format": FORMAT, "parent": model.name, "axis": "throughput", "asked": asked,
        "evidence": {}, "points": points,
    }  # fmt: skip
    (folder / FRONTIER_FILE).write_text(json.dumps(frontier))
    start = time.perf_counter()
    data = report_data(find_sources([folder], AskedSetting(tp="8")))
    priced = time.perf_counter()
    page = render_page(data)
    (folder / "report.html").write_text(page, encoding="utf-8")
    return {
        "data_s": priced - start,
        "page_s": time.perf_counter() - priced,
        "megabytes": len(page.encode()) / 1e6,
    }


def open_page(browser: Browser, file: Path, width: int) -> tuple[float, float]:
    """Seconds until the page answers, and milliseconds of a step along the frontier."""
    page = browser.new_page(viewport={"width": width, "height": 850})
    start = time.perf_counter()
    page.goto(file.as_uri())
    page.evaluate("() => new Promise(requestAnimationFrame)")
    drawn = page.evaluate("() => document.querySelectorAll('#frontier .points path').length")
    assert drawn >= POINTS, drawn
    interactive = time.perf_counter() - start
    page.locator("#walk").focus()
    step: Any = page.evaluate(
        """async (steps) => {
            const walk = document.getElementById("walk"), begin = performance.now();
            for (let step = 1; step <= steps; step++) {
                walk.value = step;
                walk.dispatchEvent(new Event("input"));
                await new Promise(requestAnimationFrame);
            }
            return (performance.now() - begin) / steps;
        }""",
        STEPS,
    )
    page.close()
    return interactive, float(step)


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    chromium = parser.parse_args().chromium
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        found: dict[str, float] = make_page(Path(name))
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for screen, width in WIDTHS.items():
            runs = [open_page(browser, Path(name) / "report.html", width) for _ in range(OPENED)]
            found[f"{screen}_interactive_s"] = statistics.median(run[0] for run in runs)
            found[f"{screen}_interactive_worst_s"] = max(run[0] for run in runs)
            found[f"{screen}_step_ms"] = statistics.median(run[1] for run in runs)
        browser.close()
    print(f"{POINTS} points, {LAYERS} layers, opened {OPENED} times")
    for what, value in found.items():
        print(f"{what:30} {value:10.2f}")
    print(json.dumps({key: round(value, 3) for key, value in found.items()}))


if __name__ == "__main__":
    main()
