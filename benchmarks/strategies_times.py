"""Seconds of training of each arm of the study, from step times: the same machine, one process, several rounds.

python benchmarks/strategies_times.py [--rounds 3]          about 5 minutes; the machine should be idle

Every step that the arms consist of is timed with its own loading, by turns; an arm's time is their sum, without
evaluation. Writes benchmarks/strategies_times.json, from which strategies_report.py takes the ratios.
"""

import argparse
import json
from pathlib import Path

from strategies import ROOT, flags_of
from strategies_cases import ARMS, MAIN, Task, tasks

from toolkit.commands import train_multi, train_single
from toolkit.config.cli import parse
from toolkit.system import console
from toolkit.tools.planner import job_of
from toolkit.tools.planner_prediction import predict
from toolkit.tools.planner_times import measure
from toolkit.training import device
from toolkit.training.parts import make_parts
from toolkit.training.run_plan import RunPlan, make_run_plan

OUT = ROOT / "benchmarks" / "strategies_times.json"
TASK = "characters"


def plans_of(task: Task) -> dict[str, RunPlan]:
    """The plan of each arm's run."""
    plans: dict[str, RunPlan] = {}
    accelerator = None
    for name in MAIN:
        arm = ARMS[name]
        recipe = {"multiscale": train_multi, "single_scale": train_single}[arm.recipe]
        command = parse(flags_of(task, arm, 0, Path("unused"))[1:], f"{arm.recipe}.py", None, recipe.SCALE_FLAGS)
        accelerator = accelerator or device.start(command.settings)
        console.start(True)
        splits = next(iter(plans.values())).splits if plans else None
        parts = make_parts(command.settings, recipe.strategy_of(command))
        plans[name] = make_run_plan(accelerator, *parts, splits=splits)
    return plans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    plans = plans_of(tasks()[TASK])
    accelerator = device.start(next(iter(plans.values())).settings)
    found: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(options.rounds):
        times = measure(accelerator, [*plans.values()])
        for name, run_plan in plans.items():
            prediction = predict(run_plan.parts.strategy, run_plan.settings.epochs, job_of(run_plan, None), times)
            found[name].append(round(prediction.training_s, 2))
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    single = found["single"]
    for name, seconds in found.items():
        ratios = [f"{own / one:.2f}x" for own, one in zip(seconds, single, strict=True)]
        print(f"{name}: {', '.join(f'{value:.0f} s' for value in seconds)}; of single {', '.join(ratios)}")
    device.stop()


if __name__ == "__main__":
    main()
