"""Readings of several visits, and what a journal gives back of them."""

from __future__ import annotations

from pathlib import Path

from puzzle_search.cost import GroupRow
from puzzle_search.files import Journal
from puzzle_search.profile.points.point import Point
from puzzle_search.profile.sampling.readings import Measured, Readings
from puzzle_search.profile.sampling.timing import Samples

AT = Measured(
    subject="mlp", part="subblock", point=Point(phase="decode", batch=4, tokens=1, context=1)
)


def group(number: int) -> GroupRow:
    return GroupRow(
        group=number,
        seconds=1.5,
        sm_clock_mhz=None,
        memory_clock_mhz=None,
        temperature_c=None,
        power_watts=None,
        throttle="",
        other_processes=None,
    )


def test_samples_of_all_visits_count(tmp_path: Path) -> None:
    readings = Readings(Journal(tmp_path / "journal.jsonl"), {"device": "this"})
    readings.add(group(0), {AT: Samples(visits=((10.0, 10.0, 10.1),))})
    assert readings.known(AT).steady
    readings.add(group(1), {AT: Samples(visits=((14.0, 14.1, 14.2, 14.3),))})
    known = readings.known(AT)
    assert not known.steady  # each visit was, the machine is not
    assert 10.1 < known.samples.median_us < 14.0  # between the visits
    assert known.group == 1
    again = Readings(Journal(tmp_path / "journal.jsonl"), {"device": "this"})
    assert again.known(AT) == known
    assert again.seconds == readings.seconds == 3
