"""Which batch is chosen, what is measured together, and what memory forbids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from puzzle_search.arch import ArchitectureSpec, ParentConfig
from puzzle_search.cost import Scenario, parse_dtype
from puzzle_search.errors import InputError
from puzzle_search.evaluate import ServedModel, ServingBench, batch_choice, serving_bench
from puzzle_search.evaluate.batch_choice import choose_batch, largest_batch, serving_bytes
from puzzle_search.runtime import Engine, ServingDecoder, precision_on
from tests.model.pico import write_parent

CPU = torch.device("cpu")
FP32 = precision_on("fp32", CPU)
SCENARIO = Scenario(input_len=8, output_len=8)
# By hand, in fp32, for the pico Llama: 4 matrices of 64 x 64, 3 of 64 x 512, 2 norms in each of 2
# layers; two tables of 96 x 64 and a norm; keys and values of 4 heads of 16.
WEIGHTS = 4 * (2 * (4 * 64 * 64 + 3 * 64 * 512 + 2 * 64) + 2 * 96 * 64 + 64)
KV = 2 * 2 * 64 * 4
ACTIVATIONS = 8 * (4 * 64 + 2 * 512) * 4 + 96 * 4  # a sequence: eight tokens, and its logits
EACH = 16 * KV + ACTIVATIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("parent")
    write_parent(made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return ServedModel.find(str(folder))


@pytest.fixture(scope="module")
def decoder(model: ServedModel) -> ServingDecoder:
    return model.load(FP32, CPU)


def make_bench(*models: ServedModel, limit: int) -> ServingBench:
    ticks = iter(range(10**6))
    return ServingBench(
        models=models,
        scenario=SCENARIO,
        precision=FP32,
        device=CPU,
        memory_limit_bytes=limit,
        clock=lambda: float(next(ticks)),
    )


def test_bytes_by_hand(model: ServedModel) -> None:
    for batch in (1, 5):
        found = serving_bytes(model.config, model.spec, parse_dtype("fp32"), SCENARIO, batch)
        assert found == WEIGHTS + batch * EACH


def test_largest_batch_that_fits(model: ServedModel) -> None:
    fp32 = parse_dtype("fp32")
    for limit, batch in ((WEIGHTS + 7 * EACH, 7), (WEIGHTS + 8 * EACH - 1, 7), (10**12, 1024)):
        assert largest_batch(model.config, model.spec, fp32, SCENARIO, limit) == batch
    with pytest.raises(InputError, match="one sequence of 8/8 takes"):
        largest_batch(model.config, model.spec, fp32, SCENARIO, WEIGHTS + EACH - 1)


@pytest.mark.parametrize(
    ("rates", "tried", "best"),
    [
        ({24: 9.0, 12: 8.0, 6: 7.0}, [24, 12, 6], 24),
        ({24: 9.0, 12: 8.0, 6: 10.0, 3: 5.0, 1: 4.0}, [24, 12, 6, 3, 1], 6),
        ({24: None, 12: None, 6: None, 3: 5.0, 1: 4.0}, [24, 12, 6, 3, 1], 3),
    ],
)
def test_halvings_until_two_are_no_faster(
    decoder: ServingDecoder,
    monkeypatch: pytest.MonkeyPatch,
    rates: dict[int, float | None],
    tried: list[int],
    best: int,
) -> None:
    monkeypatch.setattr(batch_choice, "_try", lambda _decoder, _scenario, b, _clock: rates[b])
    choice = choose_batch(
        decoder, SCENARIO, memory_limit_bytes=WEIGHTS + 24 * EACH, clock=lambda: 0.0
    )
    assert (choice.batch, choice.fits) == (best, 24)
    assert list(choice.tried) == tried
    assert ("out of memory" in str(choice)) == (None in rates.values())


def exhausted(least: int) -> Callable[..., Engine]:
    """An engine maker that runs out of memory from some batch on."""

    def make(decoder: ServingDecoder, scenario: Scenario, batch: int) -> Engine:
        if batch >= least:
            raise torch.OutOfMemoryError("no memory")
        return Engine(decoder, slots=batch, max_length=scenario.input_len + scenario.output_len)

    return make


def test_real_trials_skip_what_runs_out_of_memory(
    decoder: ServingDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_choice, "open_engine", exhausted(4))
    ticks = iter(range(10**6))

    def choose() -> batch_choice.BatchChoice:
        return choose_batch(
            decoder,
            SCENARIO,
            memory_limit_bytes=WEIGHTS + 4 * EACH,
            clock=lambda: float(next(ticks)),
        )

    # One second between two readings of the clock, whatever is done: the larger batch is faster.
    choice = choose()
    assert choice.tried == {4: None, 2: pytest.approx(2 * 8 / 8), 1: pytest.approx(8 / 8)}
    assert choice.batch == 2
    monkeypatch.setattr(batch_choice, "open_engine", exhausted(1))
    with pytest.raises(InputError, match="at every batch size from 4 down"):
        choose()


def test_models_run_in_turn_where_they_fit_together(model: ServedModel) -> None:
    for limit, in_turn in ((2 * (WEIGHTS + 3 * EACH), True), (2 * (WEIGHTS + 3 * EACH) - 1, False)):
        bench = make_bench(model, model, limit=limit)
        made = bench.batches(batch=3, iterations=2, warm_up=0)
        assert [entry.in_turn for entry in made] == [in_turn] * 2
        assert [entry.figures.batch for entry in made] == [3, 3]


def test_a_batch_is_chosen_for_each_model(model: ServedModel) -> None:
    roomy = make_bench(model, model, limit=8 * (WEIGHTS + EACH))
    together = roomy.batches(batch=None, iterations=1, warm_up=0)
    assert [entry.in_turn for entry in together] == [True] * 2
    # With one sequence each they take a quarter of the memory; half of it is each one's.
    assert [entry.choice.fits for entry in together] == [3 * WEIGHTS // EACH + 4] * 2
    tight = make_bench(model, model, limit=WEIGHTS + 6 * EACH)
    alone = tight.batches(batch=None, iterations=1, warm_up=0)
    assert [entry.in_turn for entry in alone] == [False] * 2
    assert [entry.choice.fits for entry in alone] == [6, 6]


def test_most_load_serves_three_requests_to_each_slot(model: ServedModel) -> None:
    [entry] = make_bench(model, limit=10**9).max_load(batch=2, requests=None)
    assert entry.as_dict()["requests"] == 6
    [entry] = make_bench(model, limit=10**9).max_load(batch=2, requests=3)
    assert entry.as_dict()["requests"] == 3


def test_a_sweep_ends_where_memory_does(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(model, model, limit=10**9)
    found = bench.sweep(max_batch=5, iterations=1, warm_up=0)
    assert [point.figures.batch for point in found.points] == [1, 1, 2, 2, 4, 4]
    assert not found.ended
    monkeypatch.setattr(serving_bench, "open_engine", exhausted(2))
    found = bench.sweep(max_batch=5, iterations=1, warm_up=0)
    assert [point.figures.batch for point in found.points] == [1, 1]
    [ended] = found.ended
    assert "no batch of 2, out of memory" in ended
    with pytest.raises(InputError, match="ran out of memory"):
        bench.batches(batch=2, iterations=1, warm_up=0)


def test_what_a_name_stands_for(folder: Path, tmp_path: Path) -> None:
    served = ServedModel.find(str(folder))
    assert (served.folder, served.weights) == (folder, "checkpoint")
    config = ParentConfig.from_file(folder)
    shape = ServedModel.find(str(folder / "config.json"))
    assert (shape.folder, shape.weights) == (None, "random weights")
    assert shape.spec.blocks == ArchitectureSpec.identity(config).blocks
    pairs = [("gqa_1", "no_op"), ("linear", "mlp_256")]
    spec = tmp_path / "child.yaml"
    ArchitectureSpec.of("parent", pairs).write(spec)
    child = ServedModel.find(str(spec), model=str(folder))
    assert child.spec.blocks[0].attention == "gqa_1"
    weights = child.load(FP32, CPU).weight_bytes
    tables = 2 * 96 * 64 + 64
    first = 64 * (2 * 64 + 2 * 16) + 64
    second = 64 * 64 + 64 + 3 * 64 * 256 + 64
    assert weights == 4 * (tables + first + second)
    llama = ServedModel.find("llama-3.1-70b")
    assert (llama.config.num_layers, llama.folder) == (80, None)
    for name in ("nothing-of-this-name", str(tmp_path)):
        with pytest.raises(InputError, match="is neither a checkpoint folder"):
            ServedModel.find(name)
    with pytest.raises(InputError, match="'parent' is neither"):
        ServedModel.find(str(spec))
