"""Tables and plots of benchmarks/strategies.csv: what the study has measured so far.

python benchmarks/strategies_report.py [--plots docs/images]          prints Markdown, writes two pictures

Paired differences (same task, same seed) with Student's 95% interval. Words: better: the interval lies above 0; not
worse: above -1 point; worse: below 0; else undecided. Two seeds or fewer decide nothing. Options of the consistency are
compared on validation images, everything else on test images. Times are those of benchmarks/strategies_times.json.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from decode_accuracy import interval
from strategies import ROOT, rows
from strategies_cases import ARMS, MAIN, OPTIONS, tasks

from toolkit.system.plotting import Figure

Scores = dict[int, float]  # top-1 by size
Seeds = dict[str, Scores]  # by seed
TIMES = ROOT / "benchmarks" / "strategies_times.json"
MARGIN = 1.0  # points
SEPARATE = ("single small", "single middle", "single")
FIRST, SECOND, LARGEST = 0, 1, 2  # places in a task's sizes
EVERY = (FIRST, SECOND, LARGEST)
# Arm, baseline, places of the sizes. A single model has as much compute as the arm that is compared with it, or more.
COMPARED = (
    ("simultaneous", "single small", (FIRST,)),
    ("simultaneous", "single middle", (SECOND,)),
    ("simultaneous", "single", (LARGEST,)),
    ("progressive-simultaneous", "single small", (FIRST,)),
    ("progressive-simultaneous", "single middle", (SECOND,)),
    ("progressive-simultaneous", "single", (LARGEST,)),
    ("share 0.5", "simultaneous", EVERY),
    ("share 0.5, T 2", "simultaneous", EVERY),
    ("share 0.5, constant", "simultaneous", EVERY),
    ("progressive", "single, 1/2 of the epochs", (LARGEST,)),
    ("ramp", "single, 1/2 of the epochs", (LARGEST,)),
    ("ramp, 11/12 of the epochs", "single, 1/2 of the epochs", (LARGEST,)),
    ("ramp, 11/12 of the epochs", "single, 2/3 of the epochs", (LARGEST,)),
    ("ramp, 11/12 of the epochs", "single", (LARGEST,)),
    ("ramp, 3/2 of the epochs", "single", (LARGEST,)),
    ("compute, 2 x the epochs", "single, 1/2 of the epochs", (LARGEST,)),
    ("sampled", "simultaneous", EVERY),
    ("progressive-simultaneous", "simultaneous", EVERY),
    ("sandwich of five", "simultaneous of five", EVERY),
    ("sandwich of five, share 0.5", "simultaneous of five", EVERY),
    ("finish", "single, 3/4 of the size", (LARGEST,)),
    ("simultaneous, 3 x", "single, 3 x", (LARGEST,)),
    ("share 0.5, T 2, 3 x", "simultaneous, 3 x", EVERY),
    ("simultaneous, own statistics", "simultaneous", EVERY),
    ("simultaneous, shared", "simultaneous", EVERY),
    ("simultaneous, nearest", "simultaneous", EVERY),
    ("simultaneous, output stride 8", "simultaneous", EVERY),
    ("share 0.5, T 2, output stride 8", "simultaneous, output stride 8", EVERY),
    ("single small, output stride 8", "single small", (FIRST,)),
)
TIMED = (  # arm, the arms whose times add up to the baseline, the most that is asked for
    ("ramp, 11/12 of the epochs", ("single",), 0.65),
    ("simultaneous", SEPARATE, 1.0),
    ("sampled", ("simultaneous",), 0.45),
    ("sandwich of five", ("simultaneous of five",), 0.75),
    ("progressive-simultaneous", ("simultaneous",), 0.65),
    ("finish", ("single, 3/4 of the size",), 1.05),
)


@dataclass
class Study:
    """What was measured, by task and arm."""

    test: dict[tuple[str, str], Seeds] = field(default_factory=lambda: defaultdict(dict))
    val: dict[tuple[str, str], Seeds] = field(default_factory=lambda: defaultdict(dict))
    tmacs: dict[tuple[str, str], float] = field(default_factory=dict)  # 10^12 multiply-adds of training
    seconds: dict[str, float] = field(default_factory=dict)  # of training on the characters, by arm


def read() -> Study:
    study = Study()
    for row in rows():
        place = row["task"], row["arm"]
        study.test[place][row["seed"]], study.val[place][row["seed"]] = scores(row["test"]), scores(row["val"])
        study.tmacs[place] = float(row["tmacs"])
    if TIMES.exists():
        study.seconds = {arm: statistics.median(found) for arm, found in json.loads(TIMES.read_text()).items()}
    return study


def scores(text: str) -> Scores:
    return {int(size): float(value) for size, value in (pair.split(":") for pair in text.split())}


def verdict(differences: Sequence[float]) -> str:
    """Mean difference, its interval, and the word for it."""
    mean, low, high = interval(differences)
    if len(differences) < 3:
        return f"{mean:+.1f}, undecided"
    words = "better" if low > 0 else "not worse" if low > -MARGIN else "worse" if high < 0 else "undecided"
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}), {words}"


def differences(ours: Seeds, theirs: Seeds, sizes: Sequence[int]) -> list[float]:
    """Of the means over `sizes`, paired by seed, points."""
    return [
        statistics.mean(ours[seed][size] - theirs[seed][size] for size in sizes)
        for seed in sorted(ours.keys() & theirs.keys())
    ]


def accuracies(task: str, study: Study) -> Iterator[str]:
    """Mean test top-1 of each arm at each size, and what training cost, relative to single."""
    arms = [arm for arm in ARMS if (task, arm) in study.test]  # rows of arms that were dropped are left out
    sizes = sorted({size for arm in arms for found in study.test[task, arm].values() for size in found})
    yield f"| {task} | seeds | {' | '.join(f'{size} px' for size in sizes)} | multiply-adds | time |"
    yield "|" + "---|" * (len(sizes) + 4)
    for arm in arms:
        seeds = study.test[task, arm].values()
        means = [[found[size] for found in seeds if size in found] for size in sizes]
        cells = [f"{statistics.mean(values):.1f}" if values else "" for values in means]
        whole, time = study.tmacs.get((task, "single")), study.seconds.get("single")
        cells.append(f"{study.tmacs[task, arm] / whole:.2f}x" if whole else "")
        cells.append(
            f"{study.seconds[arm] / time:.2f}x" if time and arm in study.seconds and task == "characters" else ""
        )
        yield f"| {arm} | {len(seeds)} | {' | '.join(cells)} |"


def comparisons(task: str, study: Study) -> Iterator[str]:
    """Paired differences of the arms against their baselines, at each size and, of several sizes, of their mean."""
    sizes = tasks()[task].sizes
    yield f"| {task}, test | against | seeds | px: difference, points |"
    yield "|---|---|---|---|"
    for arm, baseline, places in COMPARED:
        yield from _line(task, arm, baseline, [sizes[place] for place in places], study.test)
    if any((task, arm) in study.val for arm in OPTIONS[1:]):
        yield f"\n| {task}, **validation** | against | seeds | px: difference, points |"
        yield "|---|---|---|---|"
        for arm in OPTIONS:
            yield from _line(task, arm, "simultaneous", sizes, study.val)


def _line(
    task: str, arm: str, baseline: str, sizes: Sequence[int], found: Mapping[tuple[str, str], Seeds]
) -> Iterator[str]:
    ours, theirs = found.get((task, arm), {}), found.get((task, baseline), {})
    if both := ours.keys() & theirs.keys():
        told = [f"{size}: {verdict(differences(ours, theirs, [size]))}" for size in sizes]
        told += [f"mean: {verdict(differences(ours, theirs, sizes))}"] if len(sizes) > 1 else []
        yield f"| {arm} | {baseline} | {len(both)} | {'; '.join(told)} |"


def mean_gain(task: str, arm: str, study: Study) -> str:
    """One model for all sizes against the three separate ones, of the mean over the sizes; empty if not measured."""
    sizes = tasks()[task].sizes
    alone = [study.test.get((task, arm), {}) for arm in SEPARATE]
    ours = study.test.get((task, arm), {})
    seeds = sorted(set(ours).intersection(*alone))
    found = [
        statistics.mean(ours[seed][size] - one[seed][size] for size, one in zip(sizes, alone, strict=True))
        for seed in seeds
    ]
    return f"{task}: {arm} against three separate models, mean over sizes: {verdict(found)}" if found else ""


def times(study: Study) -> Iterator[str]:
    """Time of training against that of the baseline, and what is asked for."""
    for arm, baseline, most in TIMED:
        if {arm, *baseline} <= study.seconds.keys():
            ratio = study.seconds[arm] / sum(study.seconds[name] for name in baseline)
            yield f"time of {arm} / {' + '.join(baseline)}: {ratio:.2f}x, asked for {most:g}x"


def plot_compute(study: Study, path: Path) -> None:
    """Accuracy at the largest size against compute, on the characters."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = [arm for arm in MAIN if ("characters", arm) in study.test and arm not in SEPARATE[:2]]
    shown = [arm for arm in shown if 64 in next(iter(study.test["characters", arm].values())) and "size" not in arm]
    singles = []
    for arm in shown:
        values = [found[64] for found in study.test["characters", arm].values()]
        cost = study.tmacs["characters", arm] / study.tmacs["characters", "single"]
        bars = [[statistics.mean(values) - min(values)], [max(values) - statistics.mean(values)]]
        alone = arm.startswith("single")
        axes.errorbar(cost, statistics.mean(values), bars, fmt="s" if alone else "o", capsize=2, label=arm)
        singles += [(cost, statistics.mean(values))] if alone else []
    axes.plot(*zip(*sorted(singles), strict=True), "--", color="gray", linewidth=1, zorder=0)
    axes.set(xlabel="multiply-adds of training (64 px alone: 1)", ylabel="test top-1 at 64 px, %; bars: range of seeds")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=110)


def plot_sizes(study: Study, path: Path) -> None:
    """Accuracy against test size, on the characters."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for arm in (*SEPARATE, "simultaneous", "sampled", "progressive-simultaneous", "ramp, 11/12 of the epochs"):
        if seeds := study.test.get(("characters", arm)):
            sizes = tasks()["characters"].sizes
            means = [statistics.mean(found[size] for found in seeds.values()) for size in sizes]
            axes.plot(sizes, means, "s--" if arm in SEPARATE else "o-", label=arm, linewidth=1.2, markersize=4)
    axes.set(xlabel="test size, px", ylabel="test top-1, %", xticks=tasks()["characters"].sizes)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plots", type=Path, default=ROOT / "docs" / "images", help="folder of the pictures")
    options = parser.parse_args()
    study = read()
    for task in dict.fromkeys(task for task, _ in study.test):
        gains = [mean_gain(task, arm, study) for arm in ("simultaneous", "progressive-simultaneous")]
        print("\n".join(["", *accuracies(task, study), "", *comparisons(task, study), "", *gains]))
    print("\n".join(["", *times(study)]))
    plot_compute(study, options.plots / "strategies_compute.png")
    plot_sizes(study, options.plots / "strategies_sizes.png")


if __name__ == "__main__":
    main()
