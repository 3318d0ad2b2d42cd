"""What has been measured, kept in a journal so that a killed profile goes on where it was."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

from pydantic import Field

from puzzle_search.cost import GroupRow
from puzzle_search.files import Journal, Positive, Text, resume_journal
from puzzle_search.profile.points.point import Point
from puzzle_search.profile.sampling.timing import SPREAD_LIMIT, Samples


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A part of a subject at one point: what a reading is of."""

    subject: Text
    part: Text
    point: Point


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was measured, and in which group last."""

    samples: Samples
    group: int

    @property
    def steady(self) -> bool:
        """Whether the spread is within the limit."""
        return self.samples.spread <= SPREAD_LIMIT


@dataclass(frozen=True, kw_only=True)
class _Entry(Measured):
    us: Annotated[tuple[Positive, ...], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class _Line:
    """Of the journal: what was measured in turn."""

    group: GroupRow
    readings: tuple[_Entry, ...]


class Readings:
    """Readings by what they are of, and the groups that they were measured in.

    Args:
        journal: where they are kept; None keeps them in memory.
        made_from: whatever a reading depends on besides what it is of.

    Raises:
        InputError: the journal is of something else, or damaged.
    """

    def __init__(self, journal: Journal | None, made_from: dict[str, Any]) -> None:
        self._journal = journal
        self._readings: dict[Measured, Reading] = {}
        self._groups_before = 0
        self.groups: list[GroupRow] = []
        lines: list[_Line] = resume_journal(journal, made_from, _Line) if journal else []
        for line in lines:
            self._take(
                line.group,
                {
                    Measured(subject=one.subject, part=one.part, point=one.point): Samples(
                        visits=(one.us,)
                    )
                    for one in line.readings
                },
            )

    @classmethod
    def of(cls, known: Mapping[Measured, Reading], *, groups: int) -> Self:
        """Readings that go on, in memory, from known ones that were measured in so many groups."""
        readings = cls(None, {})
        readings._readings.update(known)
        readings._groups_before = groups
        return readings

    @property
    def next_group(self) -> int:
        """Number of the group that comes next."""
        return self._groups_before + len(self.groups)

    @property
    def all(self) -> Mapping[Measured, Reading]:
        """Every reading."""
        return self._readings

    def of_subjects(self, subjects: Collection[str]) -> dict[Measured, Reading]:
        """Readings of these subjects."""
        return {key: value for key, value in self._readings.items() if key.subject in subjects}

    @property
    def seconds(self) -> float:
        """Time of all groups."""
        return sum(group.seconds for group in self.groups)

    def get(self, measured: Measured) -> Reading | None:
        """The reading, if there is one."""
        return self._readings.get(measured)

    def known(self, measured: Measured) -> Reading:
        """The reading of what has been measured."""
        reading = self.get(measured)
        assert reading is not None, "places of a lattice have been measured"
        return reading

    def add(self, group: GroupRow, samples: Mapping[Measured, Samples]) -> None:
        """Keep a group of readings; samples of what was read before join those of then."""
        if self._journal is not None:
            readings = tuple(
                _Entry(subject=key.subject, part=key.part, point=key.point, us=value.us)
                for key, value in samples.items()
            )
            self._journal.append(asdict(_Line(group=group, readings=readings)))
        self._take(group, samples)

    def _take(self, group: GroupRow, samples: Mapping[Measured, Samples]) -> None:
        self.groups.append(group)
        for key, value in samples.items():
            before = self._readings.get(key)
            if before is not None:
                value = Samples(visits=before.samples.visits + value.visits)
            self._readings[key] = Reading(samples=value, group=group.group)
