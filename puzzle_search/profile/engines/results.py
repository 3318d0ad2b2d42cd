"""What was measured so far, in a journal: seconds of every child at every point."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from puzzle_search.errors import InputError
from puzzle_search.files import Count, Journal, Positive, Text, resume_journal
from puzzle_search.profile.engines.stacks import Stack
from puzzle_search.profile.points.point import Point

_Place = tuple[str, int, Point]  # stack, blocks, point


@dataclass(frozen=True, kw_only=True)
class _Line:
    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class _Identity(_Line):
    identity: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _TooLarge(_Line):
    stack: Text
    blocks: Count
    too_large: str


@dataclass(frozen=True, kw_only=True)
class _Skipped(_Line):
    stack: Text
    blocks: Count
    point: Point
    skipped: str


@dataclass(frozen=True, kw_only=True)
class _Timed(_Line):
    stack: Text
    blocks: Count
    point: Point
    seconds: Annotated[list[Positive], Field(min_length=1)]
    took_seconds: Positive


class Results:
    """Times of children, kept as they are measured.

    Args:
        journal: taken up where it stands.
        made_from: settings and hashes that every result depends on.

    Attributes:
        seconds: samples by stack, blocks and point.
        skipped: why there are none, likewise.
        took_seconds: wall time of each stack's runs.
        identity: software and device; empty before the first worker.

    Raises:
        InputError: the journal is damaged, or holds results of another run.
    """

    def __init__(self, journal: Journal, made_from: dict[str, Any]) -> None:
        self._journal = journal
        self.seconds: dict[_Place, list[float]] = {}
        self.skipped: dict[_Place, str] = {}
        self.took_seconds: dict[str, float] = {}
        self.identity: dict[str, Any] = {}
        self._too_large: dict[tuple[str, int], str] = {}
        for entry in resume_journal(journal, made_from, _Identity | _TooLarge | _Skipped | _Timed):
            self._take(entry)

    def check_identity(self, identity: dict[str, Any]) -> None:
        """Note which software and device measure.

        Raises:
            InputError: results so far are of others.
        """
        # How much cache is left depends on the child, everything else is the same for all.
        identity = {key: value for key, value in identity.items() if key != "kv_tokens"}
        if not self.identity:
            self._add(_Identity(identity=identity))
        elif self.identity != identity:
            differ = [key for key in identity if identity[key] != self.identity.get(key)]
            raise InputError(
                f"{self._journal.path} holds results of another {' and '.join(sorted(differ))}",
                remedy="go on where it was begun, or delete that file to begin anew",
            )

    def add_seconds(
        self, stack: Stack, blocks: int, point: Point, seconds: list[float], took_seconds: float
    ) -> None:
        """Keep the samples of a point, and how long they took."""
        self._add(
            _Timed(
                stack=str(stack),
                blocks=blocks,
                point=point,
                seconds=seconds,
                took_seconds=took_seconds,
            )
        )

    def add_skipped(self, stack: Stack, blocks: int, point: Point, why: str) -> None:
        """Keep why a point has no samples."""
        self._add(_Skipped(stack=str(stack), blocks=blocks, point=point, skipped=why))

    def add_too_large(self, stack: Stack, blocks: int, why: str) -> None:
        """Keep that a child did not fit."""
        self._add(_TooLarge(stack=str(stack), blocks=blocks, too_large=why))

    def too_large(self, stack: Stack, blocks: int) -> str | None:
        """Why a child does not fit; None if it did, or was not tried."""
        return self._too_large.get((str(stack), blocks))

    def has(self, stack: Stack, blocks: int, point: Point) -> bool:
        """Whether a point is done, or was given up."""
        place = (str(stack), blocks, point)
        return place in self.seconds or place in self.skipped

    def _add(self, line: _Line) -> None:
        self._journal.append(asdict(line))
        self._take(line)

    def _take(self, line: _Line) -> None:
        match line:
            case _Identity():
                self.identity = line.identity
            case _TooLarge():
                self._too_large[line.stack, line.blocks] = line.too_large
            case _Skipped():
                self.skipped[line.stack, line.blocks, line.point] = line.skipped
            case _Timed():
                self.seconds[line.stack, line.blocks, line.point] = line.seconds
                before = self.took_seconds.get(line.stack, 0.0)
                self.took_seconds[line.stack] = before + line.took_seconds
