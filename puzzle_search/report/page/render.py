"""The page as one HTML file that needs nothing else: data, style, script and plotly's library."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from puzzle_search.packages import installed

_PARTS = files("puzzle_search.report.page")
_SCRIPTS = ("words.js", "pictures.js", "page.js")


def render_page(data: dict[str, Any]) -> str:
    """The page of some data.

    Args:
        data: as `report_data` gives it.

    Raises:
        MissingDependencyError: plotly, whose JavaScript draws the pictures, is absent.
    """
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        _part("page.html.jinja")
    )
    return template.render(
        title=f"{data['name']} on {data['setting']['gpu']}",
        # A script ends at the first "</" in it, whatever that stands in.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        style=_part("page.css"),
        scripts=[_part(name) for name in _SCRIPTS],
        library=_plotly_js(),
    )


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _plotly_js() -> str:
    with installed():
        from plotly.offline import get_plotlyjs
    library: str = get_plotlyjs()
    return library
