"""The planner: predictions from given times, epochs for a budget, commands, and a comparison on tiny data."""

import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit import InputError, Progressive, Settings, Simultaneous, SingleScale, Strategy
from toolkit.config.cli import parse
from toolkit.config.scales import Scales
from toolkit.models.evaluator import LATENCY_S
from toolkit.strategies import Finish, Sampled, build
from toolkit.tools import planner_times
from toolkit.tools.planner import Row, plan, recommend
from toolkit.tools.planner_candidates import CANDIDATES, PREFERRED, command, scales_of
from toolkit.tools.planner_prediction import PAGE_S, Job, fewest_epochs, most_epochs, predict
from toolkit.tools.planner_text import duration, short
from toolkit.tools.planner_times import EvalTime, StepTime, Times
from toolkit.training.loop import train

SCALES = (16, 32, 64)
STEP_S = {(16,): 1.0, (32,): 2.0, (64,): 4.0, SCALES: 8.0}
JOB = Job(images=100, batch_size=10, val=50)  # 10 steps an epoch


def times(load_s: float = 0.5, cold_s: float = 0.5, shares_cores: bool = False) -> Times:
    steps = tuple(StepTime(sizes, 10, seconds, load_s, cold_s, seconds / 10) for sizes, seconds in STEP_S.items())
    evals = (EvalTime((64,), 0.01, 0.03), EvalTime(SCALES, 0.02, 0.05))
    return Times(steps, evals, start_s=7.0, shares_cores=shares_cores)


def seconds_of(strategy: Strategy) -> Callable[[int], float]:
    def seconds(epochs: int) -> float:
        try:
            return predict(strategy, epochs, JOB, times()).seconds
        except InputError:
            return math.inf

    return seconds


def test_a_run_takes_its_steps_its_evaluations_and_its_start():
    found = predict(SingleScale(64), 3, JOB, times())
    assert found.training_s == 3 * 10 * 4.0
    evaluations = 50 * (3 * 0.01 + 0.02 + 0.01)  # each epoch, decoding once, and the end
    assert found.eval_s == pytest.approx(evaluations + LATENCY_S + (1 + 3) * PAGE_S)
    assert found.seconds == found.training_s + found.eval_s + 7.0
    assert found.memory_gb == 0.4
    assert found.cost is None


def test_all_sizes_are_evaluated_at_the_end_of_a_phase_and_on_test():
    few, more = (predict(Simultaneous(SCALES), epochs, JOB, times()).eval_s for epochs in (1, 2))
    assert more - few == pytest.approx(50 * 0.01 + PAGE_S)  # an epoch in the middle: the largest size only
    tested = predict(Simultaneous(SCALES), 1, replace(JOB, test=100), times()).eval_s
    assert tested - few == pytest.approx(100 * 0.05)
    averaged = predict(Simultaneous(SCALES), 1, replace(JOB, raw=True), times()).eval_s
    assert averaged - few == pytest.approx(2 * 50 * 0.02)  # at the end of the epoch and of the run


def test_the_cost_is_that_of_all_machines_for_the_whole_run():
    found = predict(SingleScale(64), 3, replace(JOB, hourly_cost=6.0), times())
    assert found.cost == pytest.approx(found.seconds / 3600 * 6)


def test_a_step_takes_as_long_as_its_loading_when_that_is_slower():
    slow = predict(SingleScale(64), 3, JOB, times(load_s=5.0, cold_s=5.0))
    assert slow.training_s == 3 * 10 * 5.0


@pytest.mark.parametrize(
    ("cold_s", "shares_cores", "first_s"), [(3.5, False, 4.0), (6.0, False, 6.0), (3.5, True, 7.0)]
)
def test_the_first_epoch_decodes_the_images_that_are_kept_in_memory(cold_s: float, shares_cores: bool, first_s: float):
    """Beside a GPU that takes longer it costs nothing; on a CPU it takes time from training."""
    found = times(cold_s=cold_s, shares_cores=shares_cores)
    assert predict(SingleScale(64), 3, JOB, found).training_s == 3 * 10 * 4.0  # control: nothing is kept
    kept = replace(JOB, reader=lambda size: None)
    assert predict(SingleScale(64), 3, kept, found).training_s == pytest.approx(10 * first_s + 2 * 10 * 4.0)


def test_a_stage_decodes_again_when_it_keeps_images_of_another_size():
    found = times(cold_s=6.0)
    once, each = (replace(JOB, reader=reader) for reader in (lambda size: None, lambda size: size))
    once_s, each_s = (predict(Progressive(SCALES), 6, job, found).training_s for job in (once, each))
    assert each_s - once_s == pytest.approx(10 * ((6 - 2) + (6 - 4)))


def test_each_graph_is_compiled_once_a_run():
    found = times()
    slow = replace(found, steps=tuple(replace(step, compile_s=100.0) for step in found.steps))
    for strategy, graphs in ((SingleScale(64), 1), (Simultaneous(SCALES), 1), (Progressive(SCALES), 3)):
        without, compiled = (predict(strategy, 6, JOB, measured).training_s for measured in (found, slow))
        assert compiled - without == pytest.approx(100 * graphs)


def test_the_epochs_of_progressive_training_sum_to_the_run_s_and_take_their_own_time():
    for epochs in range(3, 15):
        for strategy in (Progressive(SCALES), Progressive(SCALES, ramp=True)):
            assert predict(strategy, epochs, JOB, times()).epochs == epochs
    stages = predict(Progressive(SCALES), 7, JOB, times()).phases
    assert [(phase.sizes, phase.epochs, phase.seconds) for phase in stages] == [
        ((16,), 2, 20.0),
        ((32,), 2, 40.0),
        ((64,), 3, 120.0),
    ]


def test_the_time_of_a_size_in_between_is_interpolated_by_pixels():
    pixels = (48 * 48 - 32 * 32) / (64 * 64 - 32 * 32)
    alone = replace(times(), steps=times().steps[:3])
    assert alone.step((48,), 10).step_s == pytest.approx(2 + 2 * pixels)
    assert alone.step((64,), 10).step_s == 4.0
    assert alone.step((128,), 10).step_s == pytest.approx(4 * 4.0)
    assert alone.evaluation((64,)).image_s == 0.01


@pytest.mark.parametrize(
    "strategy", [SingleScale(64), Simultaneous(SCALES), Progressive(SCALES), Progressive(SCALES, ramp=True)]
)
def test_a_budget_buys_the_most_epochs_that_fit_and_a_larger_one_never_fewer(strategy: Strategy):
    """Compared with trying every number of epochs."""
    seconds, fewest, before = seconds_of(strategy), fewest_epochs(strategy, JOB), 0
    every = {epochs: seconds(epochs) for epochs in range(1, 80)}
    for budget_s in range(10, 1500, 35):
        bought = most_epochs(seconds, budget_s, fewest)
        assert bought == max((epochs for epochs, needed in every.items() if needed <= budget_s), default=0)
        assert bought >= before
        before = bought
    assert before > 10  # control


def test_a_budget_buys_exactly_the_epochs_that_it_pays_for():
    assert most_epochs(lambda epochs: 5.0 + 10 * epochs, 105.0) == 10
    assert most_epochs(lambda epochs: 5.0 + 10 * epochs, 104.9) == 9
    assert most_epochs(lambda epochs: 5.0 + 10 * epochs, 14.9) == 0
    assert most_epochs(lambda epochs: 10.0 if epochs == 6 else math.inf, 20.0, 6) == 6  # the stages are given


def test_stages_need_an_epoch_each():
    assert fewest_epochs(Progressive(SCALES), JOB) == 3
    assert fewest_epochs(Progressive(SCALES, scale_epochs=(1, 2, 5)), JOB) == 8
    assert fewest_epochs(SingleScale(64), JOB) == 1


def row(name: str, epochs: int) -> Row:
    candidate = next(candidate for candidate in CANDIDATES if candidate.name == name)
    runs = candidate.build(SCALES)
    return Row(candidate, runs, tuple(predict(run, epochs, JOB, times()) for run in runs), (), False)


def test_the_plain_strategy_is_advised_when_all_its_epochs_fit_else_the_shorter_one():
    rows = (row("single", 9), row("staged", 9), row("ramp", 9))
    chosen, line = recommend("one-size", rows, (), 9)
    assert chosen.candidate.name == "single"
    assert "progressive --ramp takes 0." in line
    assert recommend("one-size", rows, (row("single", 9), row("ramp", 12)), 9)[0].candidate.name == "single"
    assert recommend("one-size", rows, (row("single", 8), row("ramp", 12)), 9)[0].candidate.name == "ramp"
    assert recommend("one-size", rows, (row("single", 5), row("ramp", 6)), 9)[0].candidate.name == "ramp"
    every = (row("separate", 9), row("simultaneous", 9))
    assert recommend("every-size", every, (), 9)[0].candidate.name == "simultaneous"
    assert recommend("every-size", every, (row("separate", 4),), 9)[0].candidate.name == "separate"


def test_every_preferred_strategy_is_compared_for_its_goal():
    names = {(candidate.goal, candidate.name) for candidate in CANDIDATES}
    assert len(names) == len(CANDIDATES)
    assert {(goal, name) for goal, preferred in PREFERRED.items() for name in preferred} < names


FLAGS = {
    "data_root": "my photos",
    "batch_size": 32,
    "amp": False,
    "hflip": False,
    "warmup_epochs": 0.5,
    "learning_rate": 0.00123456789,
}


@pytest.mark.parametrize("settings", [Settings(log_with="none"), Settings(**FLAGS, model_kwargs={"output_stride": 8})])
@pytest.mark.parametrize(
    "strategy",
    [
        *(run for candidate in CANDIDATES for run in candidate.build(SCALES)),
        Simultaneous(SCALES, consistency_weight=0.5, consistency="js", norm_per_scale="off", eval_scales=(16, 64)),
        Sampled(SCALES, target_share=0.25),
        Finish(SingleScale(32), 64, 2),
        Finish(Progressive((16, 32), ramp=True), 64),
    ],
)
def test_a_command_trains_the_strategy_with_the_settings(settings: Settings, strategy: Strategy):
    program, train, recipe, *words = shlex.split(command(settings, strategy, 9, 1))
    assert (program, train) == ("toolkit", "train")
    parsed = parse(words, recipe, None, tuple(Scales.model_fields))
    flags = {**parsed.scales}
    usual = "single" if recipe == "single" else "simultaneous"
    name = "progressive" if flags.pop("progressive", False) else flags.pop("strategy", usual)
    assert build(name, flags) == strategy
    given = settings.model_dump(include=settings.model_fields_set)
    assert parsed.settings == Settings(**{**given, "epochs": 9})


def test_a_command_for_several_processes_names_their_launcher(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    here, there = (command(Settings(), SingleScale(64), 5, processes) for processes in (4, 8))
    assert here.startswith("torchrun --nproc-per-node 4 -m toolkit train single --img-size 64 --epochs 5")
    assert there.startswith("torchrun --nnodes 2 --nproc-per-node 4 -m toolkit train single")


def test_one_size_starts_from_its_half_where_no_scales_are_given():
    assert scales_of(SingleScale(64)) == (32, 64)
    assert scales_of(Progressive(SCALES)) == SCALES
    assert scales_of(Finish(Progressive(SCALES), 96)) == SCALES


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (9.6, "10 s"), (59, "59 s"), (60, "1 min"), (170, "2 min 50 s"), (5_400, "1 h 30 min")],
)
def test_times_are_told_in_two_units(seconds: float, text: str):
    assert duration(seconds) == text
    assert short(5_400) == "1h30m"


TINY = Settings(
    synthetic_count=60, synthetic_size=64, batch_size=10, epochs=4, log_with="none", num_workers=0, hourly_cost=3.6
)


@pytest.mark.parametrize(
    ("strategy", "budget", "told"),
    [
        (
            SingleScale(64),
            {"time_budget_s": 22},
            r"--time-budget 22s: an epoch of single scale takes 33 s here .* the budget buys 53% of that, "
            r"3 of 6 steps; smaller: --img-size 32 fits",
        ),
        (Simultaneous(SCALES), {"time_budget_s": 25}, "an epoch of sampled takes 28 s .* smaller: --scales 16,32 fits"),
        (Simultaneous(SCALES), {"cost_budget": 0.0165}, r"--cost-budget 0.0165: .* smaller: --img-size 16 fits"),
        (Simultaneous(SCALES), {"cost_budget": 0.001}, "buys 0% of that, 0 of 6 steps; no smaller one of these sizes"),
    ],
)
def test_a_budget_that_buys_no_epoch_is_refused_and_what_it_buys_is_told(
    strategy: Strategy, budget: dict[str, float], told: str, monkeypatch: pytest.MonkeyPatch
):
    """By given times of steps instead of measured ones: the start takes 7 s, an epoch at 64 px 24 s."""
    monkeypatch.setattr("toolkit.tools.planner.measure", lambda *words: times())
    with pytest.raises(InputError, match=told) as caught:
        plan(TINY, strategy, **budget)
    assert "\n" not in str(caught.value)


def test_a_cost_budget_needs_a_price():
    with pytest.raises(InputError, match=r"^--cost-budget 5 needs --hourly-cost"):
        plan(TINY.model_copy(update={"hourly_cost": None}), SingleScale(64), cost_budget=5.0)


@pytest.mark.slow
def test_the_planned_run_is_compared_by_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(planner_times, "STEPS_S", 0.0)
    monkeypatch.setattr(planner_times, "LOADER_S", 0.0)
    monkeypatch.chdir(tmp_path)
    settings = Settings(synthetic_count=60, synthetic_size=32, batch_size=12, epochs=4, log_with="none", num_workers=0)
    found = plan(settings, Simultaneous((16, 32), consistency_weight=0.5), time_budget_s=3600)
    assert [row.candidate.name for row in found.rows] == [
        "separate",
        "simultaneous",
        "together",
        "sampled",
        "planned",
    ]
    assert [line.partition(":")[0] for line in found.left_out] == ["sandwich"]  # which needs a third size
    assert {(time.sizes, time.batch_size) for time in found.times.steps} == {((16,), 12), ((32,), 12), ((16, 32), 12)}
    assert found.planned.runs == (Simultaneous((16, 32), consistency_weight=0.5),)
    assert {row.epochs for row in found.rows} == {4}
    assert all(row.seconds <= 3600 and row.epochs > 4 for row in found.fitting)
    separate = found.rows[0]
    assert separate.seconds == sum(prediction.seconds for prediction in separate.predictions)
    assert found.recommended.candidate.name == "simultaneous"
    assert found.commands[0] in found.text
    assert list(tmp_path.iterdir()) == []
    train(settings.model_copy(update={"output_dir": tmp_path / "run"}), SingleScale(16))  # nothing is left behind
