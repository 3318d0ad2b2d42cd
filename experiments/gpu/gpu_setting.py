"""What the GPU check runs: which parent and children, in which scenarios, in which precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from puzzle_search.arch import ArchitectureSpec, ParentConfig, SearchSpace
from puzzle_search.cost import Scenario
from puzzle_search.resources import resource

PARENT = "parent"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A parent and children of it, measured against what is predicted of them.

    Attributes:
        config: the parent.
        specs: architectures by name, the parent's own first.
        rival: the child whose speed-up over the parent is looked at.
        references: children that the solver's own answer is held against.
        scenarios: of every model.
        more: further scenarios of the parent.
        published: output tok/s of the parent on an H200 by TensorRT-LLM 0.17, FP8, TP 1, in its
            performance overview.
        space: what the solver chooses from.
        scores: score table, if one ships.
        dtype: serving precision.
        batches: that are profiled.
        floor_batches: batch sizes of single decode steps.
        floor_context: tokens attended to in them.
        profile_minutes: for measuring the profile, in each round.
        contexts: along an output at which steps of a scenario are timed.
        repeats: of what is timed, in each round.
        rounds: times that the profile goes on and every model is run, all in turn: as many as a
            machine's drift asks for.
    """

    config: ParentConfig
    specs: dict[str, ArchitectureSpec]
    rival: str
    references: tuple[str, ...]
    scenarios: tuple[Scenario, ...]
    more: tuple[Scenario, ...] = ()
    published: dict[str, float] = field(default_factory=dict)
    space: SearchSpace
    scores: Path | None
    dtype: str
    batches: str
    floor_batches: tuple[int, ...]
    floor_context: int
    profile_minutes: float
    contexts: int
    repeats: int
    rounds: int = 1

    @property
    def measured_space(self) -> SearchSpace:
        """All variants that any of the models has, or the solver may choose."""
        attention = dict.fromkeys(self.space.all_variants("attention"))
        ffn = dict.fromkeys(self.space.all_variants("ffn"))
        for spec in self.specs.values():
            attention |= dict.fromkeys(block.attention for block in spec.blocks)
            ffn |= dict.fromkeys(block.ffn for block in spec.blocks)
        return SearchSpace.uniform(self.config, attention=list(attention), ffn=list(ffn))

    @property
    def lengths(self) -> tuple[Scenario, ...]:
        """Every scenario of any model."""
        return (*self.scenarios, *self.more)


def hopper() -> Setting:
    """Llama-3.1-70B and its published children in FP8, in the six scenarios of NVIDIA's table."""
    folder = resource("examples", "llama-3.1-70b")
    config = ParentConfig.from_file(folder / "config.json", name="llama-3.1-70b")
    specs = {PARENT: ArchitectureSpec.identity(config)}
    for name in ("nemotron-51b", "tps-6000", "nemotron-49b", "tps-9568"):
        specs[name] = ArchitectureSpec.from_file(folder / "children" / f"{name}.yaml")
    return Setting(
        config=config,
        specs=specs,
        rival="nemotron-51b",
        references=("nemotron-51b", "nemotron-49b"),
        scenarios=_scenarios("128/1024 128/128 128/2048 2048/128 128/4096 2048/2048"),
        more=_scenarios("1000/1000"),
        published={
            "128/128": 4020.75,
            "128/2048": 4165.68,
            "1000/1000": 2823.45,
            "2048/128": 465.99,
        },
        space=SearchSpace.from_file(folder / "space.yaml", config),
        scores=folder / "scores.csv",
        dtype="fp8",
        batches="1-1024",
        floor_batches=(1, 16, 64, 256),
        floor_context=1024,
        profile_minutes=2.5,
        contexts=6,
        repeats=3,
    )


def small() -> Setting:
    """The small parent of examples/stdlib-lm on a CPU, in fp32."""
    config = ParentConfig.from_file(resource("examples", "stdlib-lm", "parent"), name="stdlib-lm")
    layers = config.num_layers
    pairs = {
        "half": [("gqa_2", "mlp_512")] * layers,
        "late-dropped": [("gqa_4", "mlp_768")] * (layers // 2)
        + [("no_op", "mlp_512"), ("gqa_1", "no_op")] * (layers // 4),
        "linear": [("gqa_4", "mlp_768"), ("linear", "mlp_256"), ("gqa_2", "linear")]
        * (layers // 3),
        "narrow": [("gqa_1", "mlp_256")] * layers,
    }
    specs = {PARENT: ArchitectureSpec.identity(config)}
    specs |= {name: ArchitectureSpec.of(config.name, blocks) for name, blocks in pairs.items()}
    return Setting(
        config=config,
        specs=specs,
        rival="half",
        references=("half", "narrow"),
        scenarios=_scenarios("128/128 32/128 128/32 32/256 256/32 256/256"),
        space=SearchSpace.from_file(resource("examples", "stdlib-lm", "space.yaml"), config),
        scores=None,
        dtype="fp32",
        batches="1,8,32",
        floor_batches=(1, 8, 32),
        floor_context=128,
        profile_minutes=0.4,
        contexts=3,
        repeats=3,
        rounds=20,
    )


def pico() -> Setting:
    """The small parent with two models and two short scenarios, to see that every stage runs."""
    config = small().config
    narrow = ArchitectureSpec.of(config.name, [("gqa_4", "mlp_256")] * config.num_layers)
    return Setting(
        config=config,
        specs={PARENT: ArchitectureSpec.identity(config), "narrow": narrow},
        rival="narrow",
        references=("narrow",),
        scenarios=_scenarios("16/16 8/24"),
        space=SearchSpace.uniform(config, attention=["gqa_4", "no_op"], ffn=["mlp_768", "mlp_256"]),
        scores=None,
        dtype="fp32",
        batches="1,4",
        floor_batches=(1, 4),
        floor_context=24,
        profile_minutes=0.1,
        contexts=2,
        repeats=1,
        rounds=2,
    )


def _scenarios(text: str) -> tuple[Scenario, ...]:
    return tuple(Scenario.parse(part) for part in text.split())
