"""Compare finished runs on the same images: paired differences of their metrics, with intervals."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from toolkit.config.arguments import checked
from toolkit.config.checks import check_compare
from toolkit.config.choices import Split
from toolkit.models.classification import Classification
from toolkit.models.metrics import Predictions, accuracy, balanced_accuracy, macro_f1
from toolkit.models.paired import accuracy_difference, bootstrap_differences, metric_difference
from toolkit.runs.directory import RunDirectory
from toolkit.runs.mirror.copies import find_run
from toolkit.strategies.base import Metric
from toolkit.system import console, files, host
from toolkit.system.errors import InputError
from toolkit.system.places import expanded
from toolkit.tools.compared_runs import (
    FinishedRun,
    Predicted,
    WantedImages,
    at_positions,
    check_classes,
    needs_all,
    open_finished,
    pair_images,
    predictions,
    selected_by_both,
    values_at,
)
from toolkit.tools.comparison import ComparedSize, Comparison

log = logging.getLogger(__name__)


@checked("Compare")
def compare(
    run: str | Path,
    *others: str | Path,
    scales: Sequence[int] | None = None,
    split: Split | None = None,
    data_root: str | None = None,
    output_dir: str | Path | None = None,
) -> Comparison:
    """Compare other runs with the baseline `run` on the same images. The flags of `toolkit compare` describe the rest.

    Uses the predictions that the runs saved; evaluates what is missing, and everything with `data_root`. Writes
    comparison.txt and comparison.json to `output_dir`, if given. Raises InputError.
    """
    check_compare((run, *others), scales)
    folder = None if output_dir is None else expanded(output_dir)
    if folder is not None:
        files.make_folder(folder)
    console.start(host.is_main_process())
    paths = [find_run(path) for path in (run, *others)]
    wanted = WantedImages(split or _common_split(paths, data_root), data_root)
    baseline, *rest = [open_finished(path, wanted) for path in paths]
    for other in rest:
        check_classes(baseline, other)
    specs = [_common_specs(baseline, other, scales) for other in rest]
    selected = [selected_by_both(baseline, other) for other in rest]
    all_specs = list(dict.fromkeys(name for of_run in specs for name in of_run))
    first = predictions(baseline, all_specs, wanted, whole=any(metric and needs_all(metric) for metric in selected))
    sizes: list[ComparedSize] = []
    for other, of_run, metric in zip(rest, specs, selected, strict=True):
        second = predictions(other, of_run, wanted, whole=metric is not None and needs_all(metric))
        sizes += _compared(baseline, first, other, second, of_run, metric)
    comparison = Comparison(paths[0], first.split, tuple(sizes))
    if host.is_main_process() and folder is not None:
        files.write_text(folder / "comparison.txt", f"{comparison}\n")
        files.write_json(folder / "comparison.json", comparison.to_json())
    return comparison


def _common_split(runs: Sequence[Path], data_root: str | None) -> str | None:
    """test if all runs saved predictions for it, else val; None with `data_root`, which is read later."""
    if data_root is not None:
        return None
    return "test" if all((RunDirectory(run).predictions / "test.csv").exists() for run in runs) else "val"


def _common_specs(baseline: FinishedRun, other: FinishedRun, scales: Sequence[int] | None) -> list[str]:
    """The eval specs to compare at: the given sizes, or all that both runs report; raises InputError if none is."""
    if scales is not None:
        return [f"{size}px" for size in scales]
    ours, theirs = baseline.specs(), other.specs()
    if common := [name for name in ours if name in theirs]:
        return common
    raise InputError(
        f"no size in common: {baseline.path} reports {', '.join(ours)} and {other.path} {', '.join(theirs)}; "
        f"--scales {theirs[-1].removesuffix('px')} evaluates both there"
    )


def _compared(
    baseline: FinishedRun,
    first: Predicted,
    other: FinishedRun,
    second: Predicted,
    specs: Sequence[str],
    selected: Metric | None,
) -> Iterator[ComparedSize]:
    """The metrics of two runs and their differences, at each eval spec; `selected`: one more."""
    pair, classes = pair_images(baseline, first, other, second), len(baseline.classes)
    macro: dict[str, Callable[[Predictions], float]] = {
        "balanced_accuracy": partial(balanced_accuracy, classes=classes),
        "macro_f1": partial(macro_f1, classes=classes),
    }
    for spec in specs:
        ours, theirs = at_positions(first.table, spec, pair.first), at_positions(second.table, spec, pair.second)
        images = len(ours.labels)
        right, theirs_right = (found.predicted == found.labels for found in (ours, theirs))
        only_ours, only_theirs = int((right & ~theirs_right).sum()), int((theirs_right & ~right).sum())
        top1 = accuracy_difference(images, only_ours, only_theirs)
        metrics = {"top1": accuracy, **macro}
        values = [{name: metric(found) for name, metric in metrics.items()} for found in (ours, theirs)]
        differences = {"top1": top1, **bootstrap_differences(macro, ours, theirs)}
        if selected is not None:
            found = values_at(baseline, first, spec, pair.first), values_at(other, second, spec, pair.second)
            of_both = metric_difference(selected, Classification(), *found)
            values[0][selected.name], values[1][selected.name], differences[selected.name] = of_both
        yield ComparedSize(
            run=other.path,
            spec=spec,
            images=images,
            baseline=values[0],
            values=values[1],
            differences=differences,
            only_baseline=only_ours,
            only_run=only_theirs,
            left_out=pair.left_out,
            selected=selected,
        )
