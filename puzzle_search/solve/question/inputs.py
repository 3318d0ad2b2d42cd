"""A parent with its search space and scores, as files in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from puzzle_search.arch import ParentConfig, SearchSpace
from puzzle_search.errors import InputError
from puzzle_search.files import file_hash
from puzzle_search.resources import resource
from puzzle_search.solve.problem.score_table import ScoreTable
from puzzle_search.solve.question.run_folder import run_at


@dataclass(frozen=True, kw_only=True)
class SearchInputs:
    """What a search needs of a model, with the hashes of its files.

    The folder holds ``config.json``, ``space.yaml`` and ``scores.csv`` with its sidecar; a run
    directory has them where its stages wrote them.
    """

    config: ParentConfig
    space: SearchSpace
    scores: ScoreTable
    hashes: dict[str, str]

    @classmethod
    def find(
        cls, model: str, *, scores: str | None = None, space: str | None = None
    ) -> SearchInputs:
        """Open a shipped example by name, a folder, or a run directory.

        Args:
            model: its name or folder.
            scores: another score table than its own.
            space: another search space than its own.

        Raises:
            InputError: there is no such example or folder, a file in it is wrong, or the scores
                are of another model.
        """
        if (run := run_at(Path(model))) is not None:
            config, own_scores, own_space = run.config, run.scores_file, run.space_file
        else:
            folder = _folder(model)
            config = ParentConfig.from_file(folder)
            own_scores, own_space = folder / "scores.csv", folder / "space.yaml"
        score_file = Path(scores) if scores else own_scores
        space_file = Path(space) if space else own_space
        scored = ScoreTable.from_file(score_file)
        scored.check_parent(config, score_file)
        return cls(
            config=config,
            space=SearchSpace.from_file(space_file, config),
            scores=scored,
            hashes={"scores": file_hash(score_file), "space": file_hash(space_file)},
        )


def _folder(model: str) -> Path:
    shipped = resource("examples", model.lower())
    folder = Path(model) if Path(model).is_dir() else shipped
    if not folder.is_dir():
        known = sorted(p.parent.name for p in resource("examples").glob("*/scores.csv"))
        raise InputError(
            f"model {model!r} is neither a shipped example nor a folder",
            remedy=f"use {', '.join(known)}, or a folder that holds config.json, space.yaml "
            "and scores.csv",
        )
    return folder
