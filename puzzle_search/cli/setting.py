"""What specs are held against: options of the commands that look at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from puzzle_search.cli.options import (
    SettingDtypeOption,
    SettingEngineOption,
    SettingGpuOption,
    SettingModelOption,
    SettingScenarioOption,
    SettingScoresOption,
    SettingTpOption,
)
from puzzle_search.cli.serving import ServingChoice

if TYPE_CHECKING:
    from pathlib import Path

    from puzzle_search.solve.question.setting import AskedSetting


@dataclass(frozen=True, kw_only=True)
class SettingChoice(ServingChoice):
    """Each field is an option; what is not given is what the specs were solved for."""

    model: SettingModelOption = None
    gpu: SettingGpuOption = None
    scenario: SettingScenarioOption = None
    engine: SettingEngineOption = None
    dtype: SettingDtypeOption = None
    tp: SettingTpOption = None
    scores: SettingScoresOption = None

    def asked(self, home: Path | None = None) -> AskedSetting:
        """The setting that they ask for, of specs out of this run directory or checkpoint."""
        from puzzle_search.solve.question.setting import AskedSetting

        return AskedSetting(
            model=self.model,
            gpu=self.gpu,
            scenarios=tuple(self.scenario or ()),
            engine=self.engine,
            dtype=self.dtype,
            tp=self.tp,
            serving=self.serving_options(),
            scores=str(self.scores) if self.scores else None,
            home=home,
        )
