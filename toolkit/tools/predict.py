"""Predict image files with a run's best model and write one row per image."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from toolkit.config.arguments import checked
from toolkit.config.checks import check_output, check_predict
from toolkit.config.settings import Settings
from toolkit.config.tool_fields import as_paths
from toolkit.data.loading.batches import Images
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.paths import Listed, list_paths
from toolkit.data.sources.python_data import index_unlabeled
from toolkit.models.cascade import Cascade
from toolkit.models.collectives import gather_objects
from toolkit.models.multiview import MultiView
from toolkit.models.source import Model
from toolkit.runs.mirror.copies import find_run
from toolkit.strategies.base import EvalSpec, at_size
from toolkit.system import console, host
from toolkit.system.errors import InputError
from toolkit.tools.inference import InferenceOptions, start_evaluator
from toolkit.tools.interruption import interruptible
from toolkit.tools.loaded_run import load_run
from toolkit.tools.prediction_rows import STDOUT, PredictionRow, RowFile, refuse_existing
from toolkit.tools.prediction_stream import Files, PredictionStream
from toolkit.tools.prediction_summary import PredictionSummary
from toolkit.training import device

CONFIDENCE = 0.9


@checked("Predict")
def predict(
    run: str | Path,
    paths: str | Path | Sequence[str | Path] = (),
    *,
    scales: Sequence[int] | None = None,
    flip: bool = False,
    cascade: Sequence[int] | None = None,
    confidence: float | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    amp: bool | None = None,
    alone: bool = False,
    model: Model | None = None,
    output: str | None = None,
    overwrite: bool = False,
    data: Any = None,
) -> PredictionSummary:
    """Predict images. The flags of `toolkit predict` describe the arguments.

    `output`: a row for each image goes to that file, "-": to standard output, None: into the result's `rows`.
    `model`: as in `train`, for a run that was trained with a model of the user's own. `data`: a map-style data set of
    images, with or without labels, in place of `paths`. The row of an unreadable image holds the reason. Ctrl-C stops
    after the current batch. Raises InputError if an argument or the run is wrong, DiskError if a row cannot be written.
    """
    if data is not None and paths:
        raise InputError("paths would be ignored: data= is given; drop one of them")
    paths = as_paths(paths)
    check_predict(paths if data is None else ("data",), scales, cascade, confidence)
    check_output(STDOUT if output is None else output, overwrite)
    if output is not None and host.is_main_process(alone):
        refuse_existing(output, overwrite)
    options = InferenceOptions(batch_size, num_workers, amp, flip, alone)
    loaded = load_run(find_run(run), [*(scales or ()), *(cascade or ())], model=model)
    exits = _exits(scales or (loaded.strategy.selection().sizes[-1],), cascade, confidence)
    listed, images = _images(paths, data, loaded.settings)
    evaluator = start_evaluator(loaded, options)
    try:
        tally = _write(PredictionStream(evaluator, exits, loaded.classes, listed, images), output)
    finally:
        device.stop()
    return PredictionSummary(
        output=output,
        rows=tuple(tally.rows),
        images=len(listed.names),
        read=tally.exits.total(),
        bad=tally.bad,
        first_error=tally.first_error,
        left_out=listed.left_out,
        system=listed.system,
        exits=dict(tally.exits),
        stopped=tally.stopped,
        closed=tally.closed,
        cascade=tuple(cascade or ()),
        gmacs=loaded.gmacs,
        norm_from=_norm_from(loaded.model, exits),
    )


def _images(paths: Sequence[str], data: Any, settings: Settings) -> tuple[Listed, Images]:
    """What is predicted, and who reads it: files, or a data set of Python."""
    if data is None:
        listed = list_paths(paths)
        return listed, Files.of(listed, settings)
    images = ImageReader(index_unlabeled(data).seen_by(settings))
    return Listed([*images.index.names], {}, 0), images


def _exits(scales: Sequence[int], cascade: Sequence[int] | None, confidence: float | None) -> Cascade:
    """The cascade; without one, a single exit that averages probabilities over `scales`."""
    if cascade:
        return Cascade(tuple(at_size(size) for size in cascade), confidence or CONFIDENCE)
    return Cascade((EvalSpec("+".join(map(str, scales)), tuple(scales)),), CONFIDENCE)


def _norm_from(model: MultiView, cascade: Cascade) -> Mapping[int, int]:
    scales = {size: model.norm_from(size) for size in cascade.sizes}
    return {size: scale for size, scale in scales.items() if scale is not None}


@dataclass
class _Tally:
    """Running counts of rows; `exits` by size."""

    exits: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    first_error: str = ""
    stopped: bool = False
    closed: bool = False
    rows: list[PredictionRow] = field(default_factory=list)

    def add(self, rows: Sequence[PredictionRow]) -> None:
        for row in rows:
            if row.error:
                self.bad += 1
                self.first_error = self.first_error or f"{row.path}: {row.error}"
            else:
                self.exits[row.size] += 1


def _write(stream: PredictionStream, output: str | None) -> _Tally:
    """Predict batch by batch, in order: each process predicts its own batches, the main process writes all rows."""
    accelerator, tally = stream.evaluator.accelerator, _Tally()
    file = (
        RowFile(output, stream.top, stream.evaluator.task.several_labels)
        if output is not None and accelerator.is_main_process
        else None
    )
    draws = console.bars(accelerator.is_main_process) and not (output == STDOUT and sys.stdout.isatty())
    bar = tqdm(total=len(stream.listed.names), unit="image", disable=not draws)
    with interruptible() as requests, bar:
        own = stream.rows()
        for _ in range(stream.rounds):
            gathered = gather_objects((next(own, []), bool(requests), file is not None and file.closed))
            for rows, _, _ in gathered:
                if file is not None:
                    file.add(rows)
                tally.add(rows)
                tally.rows += rows if output is None else []
                bar.update(len(rows))
            tally.stopped, tally.closed = (any(part[place] for part in gathered) for place in (1, 2))
            if tally.stopped or tally.closed:
                break
    if file is not None:
        file.close()
    return tally
