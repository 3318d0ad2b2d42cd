"""The GPU check; run it through ``bench/gpu.sh``, which says what it needs and where results go.

Stages, each in a process of its own with a time limit, so that one that hangs loses itself alone:

- ``profile``: every variant of the models below, as ``puzzle-search profile`` measures it. Where
  the machine drifts, the profile and all models are measured in turn, several times.
- ``models``: Llama-3.1-70B, its published children and two of the solver's answers, random weights:
  throughput at the batch predicted to be best, from a sample of its steps, and single decode steps.
- ``headline``: the solver asked, by the measured profile, for the speed of the published children.
- ``tests``: those marked ``gpu``.
- ``small``: a real small parent through the whole pipeline.

With ``--device cpu`` the models are those of the small parent. Ends with a table and one JSON line.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_report
import gpu_setting
import yaml
from gpu_models import Bench, medians
from gpu_prediction import Entry, Prediction

from puzzle_search.arch import SearchSpace, Subblock
from puzzle_search.arch.space import FORMAT as SPACE_FORMAT
from puzzle_search.cost import parse_dtype
from puzzle_search.files import Journal, read_json, write_text
from puzzle_search.profile import ProfileGrid, Sizes, measure_profile, open_device
from puzzle_search.resources import resource
from puzzle_search.solve import ScoreTable

# Parts of the whole time that a stage may take at most, if those before it leave so much.
_SHARES = {"tests": 0.2, "profile": 0.55, "models": 0.55, "small": 0.2, "headline": 0.15}
_SUBBLOCKS: tuple[Subblock, Subblock] = ("attention", "ffn")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One run of the check: what, where, for how long."""

    device: str
    is_pico: bool
    out: Path
    work: Path
    minutes: float
    setting: gpu_setting.Setting = field(init=False)

    def __post_init__(self) -> None:
        choose = gpu_setting.small if self.device == "cpu" else gpu_setting.hopper
        object.__setattr__(self, "setting", gpu_setting.pico() if self.is_pico else choose())

    @property
    def profile(self) -> Path:
        """Folder of the profile."""
        return self.work / "profile"

    @property
    def journal(self) -> Journal:
        """Entries of the models."""
        return Journal(self.work / "models.jsonl")

    @property
    def stages(self) -> list[str]:
        """All stages: what the tables are made of first where the scores need not be made too."""
        if self.setting.scores:
            return ["profile", "models", "headline", "tests", "small"]
        return ["tests", "profile", "models", "small", "headline"]

    def stage_command(self, stage: str, deadline: float) -> list[str]:
        """What runs a stage."""
        if stage == "tests":
            of_gpu = ("tests/runtime", "tests/profile")
            return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *of_gpu]
        if stage == "small":
            run_dir = str(self.work / "small")
            recipe = str(self._small_recipe())
            return [sys.executable, "-m", "puzzle_search", "run", recipe, "--run-dir", run_dir]
        mine = [sys.executable, __file__, "--inside", stage, "--out", str(self.out)]
        mine += ["--work", str(self.work), "--device", self.device, "--until", str(deadline)]
        return [*mine, "--pico"] if self.is_pico else mine

    def _small_recipe(self) -> Path:
        """The recipe of examples/stdlib-lm on this device; in the dry run with next to no work."""
        folder = resource("examples", "stdlib-lm")
        recipe: dict[str, Any] = yaml.safe_load((folder / "recipe.yaml").read_text())
        recipe |= {"device": self.device, "parent": str(folder / "parent")}
        recipe["space"] = str(folder / "space.yaml")
        recipe["solve"]["rounds"] = 0
        if self.is_pico:
            recipe["space"] = str(self.work / "small_space.yaml")
            _write_space(Path(recipe["space"]), self.setting.space)
            recipe |= {"scenario": "16/16", "distill": None}
            recipe["profile"] = {"batches": [1, 4], "max_minutes": 0.1}
            recipe["library"] = {"tokens": 0, "calibration_tokens": 512, "held_out_tokens": 512}
            recipe["score"] = {"tokens": 256, "composed": False}
            recipe["solve"] = {"target_speedup": 1.05, "margin": 0.0}
            recipe["bench"] = {"iterations": 2}
            recipe["evaluate"] = {"tokens": 512}
            recipe["generate"]["max_new_tokens"] = 4
        file = self.work / "small.yaml"
        write_text(file, yaml.safe_dump(recipe))
        return file

    def run_inside(self, stage: str, deadline: float) -> None:
        """A stage that measures or runs models, in this process."""
        if stage == "profile":
            self._measure_profile(turns=1)
        elif stage == "models":
            for turn in range(self.setting.rounds):
                bench = self._bench(deadline)
                if turn and bench.has_work(turn):
                    self._measure_profile(turns=turn + 1)
                bench.all_models(turn)
        else:
            scores = self.setting.scores or self.work / "small" / "score" / "scores.csv"
            if not scores.exists():
                sys.exit(f"{scores} does not exist: run the stage small before this one")
            self._bench(deadline).headline(ScoreTable.from_file(scores))

    def _measure_profile(self, turns: int) -> None:
        """Go on with the profile for as long as so many turns may take."""
        setting = self.setting
        batches = Sizes.parse(setting.batches, "batches")
        measure_profile(
            setting.config,
            setting.measured_space,
            open_device(self.device),
            parse_dtype(setting.dtype),
            ProfileGrid.around(*setting.lengths, batches=batches.sizes, adaptive=not batches.exact),
            max_minutes=turns * setting.profile_minutes,
            journal=Journal(self.work / "profile.jsonl"),
        ).write(self.profile)

    def _bench(self, deadline: float) -> Bench:
        prediction = Prediction(self.setting, self.profile)
        return Bench(self.setting, open_device(self.device), prediction, self.journal, deadline)

    def run(self, stages: list[str]) -> dict[str, Any]:
        """Run stages in turn, then write and return what is known."""
        self.out.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + 60 * self.minutes
        done: dict[str, str] = {}
        for stage in stages:
            limit = min(end - time.monotonic(), 60 * self.minutes * _SHARES[stage])
            done[stage] = self._run_stage(stage, limit) if limit > 0 else "not run: no time left"
            self._write(done)
        return self._write(done)

    def _run_stage(self, stage: str, limit_s: float) -> str:
        print(f"== {stage}, at most {limit_s:.0f} s", flush=True)
        begun = time.monotonic()
        # Stages of models end by themselves; what they began last may take a while.
        command = self.stage_command(stage, begun + 0.8 * limit_s)
        try:
            with (self.out / "log.txt").open("ab") as log:
                ended = subprocess.run(
                    command, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s, check=False
                )
        except subprocess.TimeoutExpired:
            return f"stopped after {limit_s:.0f} s"
        seconds = time.monotonic() - begun
        nothing_to_do = stage == "tests" and ended.returncode == 5
        if ended.returncode == 0 or nothing_to_do:
            return f"done in {seconds:.0f} s"
        return f"failed ({ended.returncode}) after {seconds:.0f} s, see log.txt"

    def _write(self, done: dict[str, str]) -> dict[str, Any]:
        setting = self.setting
        has_profile = (self.profile / "profile.yaml").exists()
        entries: dict[str, Entry] = {}
        if has_profile:
            measured = medians(self.journal.read())
            entries = Prediction(setting, self.profile).added_to(measured)
        errors = (0.10, 0.10) if self.device == "cpu" else (0.05, 0.10)
        lines = gpu_report.demands(setting, entries, errors=errors)
        summary: dict[str, Any] = {
            "bench": "gpu",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "evidence": "measured",
            "weights": "random",
            "throughput": "sampled steps, see puzzle_search.evaluate.sampled",
            "is_dry_run": self.is_pico,
            "device": open_device(self.device).identity,
            "model": setting.config.name,
            "dtype": setting.dtype,
            "stages": done,
            "demands": [line.as_dict() for line in lines],
            "small": self._small_report(),
        }
        title = f"{setting.config.name}, {setting.dtype}, {summary['device']['name']}"
        write_text(self.out / "table.md", gpu_report.markdown(lines, title))
        write_text(
            self.out / "results.json",
            json.dumps(summary | {"entries": list(entries.values())}, indent=1),
        )
        gpu_report.plot(entries, self.out)
        if self.journal.path.exists():
            shutil.copyfile(self.journal.path, self.out / self.journal.path.name)
        if has_profile:
            with tarfile.open(self.out / "profile.tar.gz", "w:gz") as archive:
                archive.add(self.profile, arcname="profile")
                archive.add(self.work / "profile.jsonl", arcname="profile.jsonl")
        return summary

    def _small_report(self) -> dict[str, Any] | None:
        file = self.work / "small" / "report.json"
        return read_json(file, remedy="run the stage small again") if file.exists() else None


def _write_space(file: Path, space: SearchSpace) -> None:
    variants = {name: list(space.all_variants(name)) for name in _SUBBLOCKS}
    write_text(file, yaml.safe_dump({"format": SPACE_FORMAT, **variants}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--pico", action="store_true", help="a dry run of every stage")
    parser.add_argument("--stages", nargs="+", choices=list(_SHARES), help="default: all")
    parser.add_argument("--minutes", type=float, default=8.8, help="for all stages together")
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--work", type=Path, required=True, help="folder to work in, kept")
    parser.add_argument(
        "--inside", choices=["profile", "models", "headline"], help=argparse.SUPPRESS
    )
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the stages asked for."""
    options = _options()
    check = Check(
        device=options.device,
        is_pico=options.pico,
        out=options.out.resolve(),
        work=options.work.resolve(),
        minutes=options.minutes,
    )
    if options.inside:
        check.run_inside(options.inside, options.until)
        return
    summary = check.run(options.stages or check.stages)
    print((check.out / "table.md").read_text())
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
