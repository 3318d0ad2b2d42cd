"""Local processes: every result once, deaths survived, errors passed on, nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from puzzle_search.errors import InputError
from puzzle_search.executor import InProcess, LocalProcesses, LostJobError, open_executor
from tests.executor import jobs
from tests.pico import environment


@pytest.fixture(autouse=True)
def nothing_is_left() -> object:
    yield
    assert multiprocessing.active_children() == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_every_result_once_and_in_the_order_of_its_job() -> None:
    sent = [("a", 3), ("b", 0), ("c", 5), ("d", 1)]
    found = list(LocalProcesses(2).run(jobs.count_up, sent))
    assert len(found) == 9
    for name, n in sent:
        assert [number for job, number in found if job == name] == list(range(n))


def test_no_jobs_give_no_results() -> None:
    assert list(LocalProcesses(2).run(jobs.count_up, [])) == []


def test_results_come_as_jobs_end() -> None:
    found = LocalProcesses(2).run(jobs.sleep_then_name, [("slow", 60.0), ("quick", 0.0)])
    assert next(found) == "quick"
    found.close()


def test_bits_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    here = list(InProcess().run(jobs.bits_of_a_sum, range(6)))
    there = list(LocalProcesses(2).run(jobs.bits_of_a_sum, range(6)))
    assert sorted(there) == sorted(here)
    assert len(set(here)) == 6


def test_workers_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = os.cpu_count() or 1
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert list(LocalProcesses(processors).run(jobs.threads, [0])) == [1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert list(LocalProcesses(1).run(jobs.threads, [0])) == [1]


def test_a_killed_job_runs_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sent = [("a", str(tmp_path), 1), ("b", str(tmp_path), 0), ("c", str(tmp_path), 2)]
    found = list(LocalProcesses(2).run(jobs.die_until, sent))
    assert sorted(found) == [f"{name} {part}" for name in "abc" for part in ("first", "second")]
    assert [len((tmp_path / name).read_text()) for name in "ac"] == [1, 2]
    told = capfd.readouterr().err
    assert told.count("died (SIGKILL); it is run again") == 3
    assert told.count("job 1 of 3") == 1


def test_a_job_that_kills_every_worker_ends_the_run(tmp_path: Path) -> None:
    sent = [("a", str(tmp_path), 99), ("b", str(tmp_path), 0)]
    with pytest.raises(LostJobError, match=r"job 1 of 2 died \(SIGKILL\), as on the 2 tries"):
        list(LocalProcesses(1).run(jobs.die_until, sent))
    assert len((tmp_path / "a").read_text()) == 3


def test_an_error_ends_the_run_and_all_workers() -> None:
    with pytest.raises(InputError, match="the bad job was refused") as raised:
        list(LocalProcesses(2).run(jobs.refuse, ["fine", "bad", "fine"]))
    assert raised.value.remedy == "leave it out"


def test_a_bug_says_where_it_is() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        list(LocalProcesses(1).run(jobs.divide, [0]))
    assert "yield 1 / number" in raised.value.__notes__[0]


def test_results_that_cannot_be_sent_are_an_error() -> None:
    with pytest.raises(TypeError, match="pickle"):
        list(LocalProcesses(1).run(jobs.cannot_be_sent, [0]))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_end_of_the_driver_is_the_end_of_its_workers(
    how: signal.Signals, tmp_path: Path
) -> None:
    code = (
        "import signal, sys\n"
        "from puzzle_search.executor import LocalProcesses\n"
        "from tests.executor import jobs\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background\n"
        "    list(LocalProcesses(2).run(jobs.write_pid_and_wait, [sys.argv[1]] * 3))\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment(),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert all(alive(pid) for pid in workers)
    if how == signal.SIGINT:  # as a terminal sends it: to all
        os.killpg(driver.pid, how)
    else:
        driver.send_signal(how)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == -how
    assert said.count("KeyboardInterrupt\n") == (how == signal.SIGINT)
    wait_until(lambda: not any(alive(pid) for pid in workers))


def test_executors_by_name() -> None:
    assert isinstance(open_executor(), InProcess)
    assert isinstance(open_executor("local", workers=1), InProcess)
    assert isinstance(open_executor("local", workers=2), LocalProcesses)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dask", {}, "'dask' is not known"),
        ("local", {"address": "auto"}, "of a Ray cluster"),
        ("local", {"gpus_per_job": 1}, "of a Ray cluster"),
        ("ray", {"workers": 2}, "--workers are local processes"),
    ],
)
def test_options_of_another_executor(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_executor(name, **options)
