"""What a run's best model says of images, in a stream: files are decoded once, as evaluation does, and forgotten."""

import io
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from accelerate.utils import gather_object
from tqdm import tqdm

from toolkit.config.tool_settings import Predict
from toolkit.data.images.decode import decode
from toolkit.data.images.header import read_header
from toolkit.data.loading.batches import EvalBatch, EvalBatchBuilder
from toolkit.data.loading.workers import by_threads
from toolkit.data.sources.index import Index
from toolkit.data.sources.paths import Listed, list_paths
from toolkit.data.sources.read import read_bytes
from toolkit.models.cascade import Cascade, saving
from toolkit.models.evaluator import Evaluator
from toolkit.models.multiview import MultiView
from toolkit.strategies.base import EvalSpec, at_size
from toolkit.system import console
from toolkit.system.errors import BadSampleError, InputError, printable
from toolkit.tools.evaluate import start_evaluator
from toolkit.tools.loaded_run import load_run
from toolkit.tools.prediction_rows import STDOUT, PredictionRow, RowFile
from toolkit.training import device

TOP = 5  # classes told of each image
CONFIDENCE = 0.9
STOPPED = 130  # the exit code after Ctrl-C


class Files:
    """Images that are seen once: header and pixels are read together, where an index would read headers first."""

    def __init__(self, index: Index, unreadable: Mapping[int, str]) -> None:
        self.index, self._unreadable = index, unreadable

    def whole(self, i: int) -> np.ndarray:
        """Image i upright, H x W x 3 uint8, decoded in full; raises BadSampleError."""
        if i in self._unreadable:
            raise BadSampleError(self.index.names[i], self._unreadable[i])
        content = read_bytes(self.index, i)
        try:
            return decode(content, orientation=read_header(io.BytesIO(content)).orientation)
        except ValueError as error:
            raise BadSampleError(self.index.names[i], str(error)) from None


def make_cascade(flags: Predict, largest: int) -> Cascade:
    """What the flags ask for; without any the run's largest size."""
    if flags.cascade:
        return Cascade(tuple(at_size(size) for size in flags.cascade), flags.confidence or CONFIDENCE)
    sizes = flags.scales or (largest,)
    return Cascade((EvalSpec("+".join(map(str, sizes)), sizes),), CONFIDENCE)


def predict(flags: Predict) -> int:
    """Write a row for each image; returns the exit code. Raises InputError where nothing can be read."""
    loaded = load_run(flags.run, [*(flags.scales or ()), *(flags.cascade or ())])
    cascade = make_cascade(flags, loaded.strategy.selection().sizes[-1])
    listed = list_paths(flags.paths)
    evaluator = start_evaluator(loaded, flags)
    try:
        tally = _write(flags, listed, evaluator, cascade, loaded.classes)
    finally:
        device.stop()
    if evaluator.accelerator.is_main_process and not tally.closed:
        for line in (*tally.lines(flags, listed, loaded.gmacs), *_borrowed(loaded.model, cascade)):
            console.say(printable(line), sys.stderr)
    if tally.bad and not tally.read and not tally.stopped:
        raise InputError(f"none of the {tally.bad} images can be read; the first: {tally.first_error}")
    return STOPPED if tally.stopped else 0


def _borrowed(model: MultiView, cascade: Cascade) -> Iterator[str]:
    for size in cascade.sizes:
        scale = model.norm_from(size)
        if scale is not None:
            yield f"{f'{size} px':9} normalization of {scale} px: the run was not trained at {size} px"


class Tally:
    """What became of the images, for the last lines; on the main process."""

    def __init__(self) -> None:
        self.exit_index: Counter[str] = Counter()  # by size
        self.bad, self.first_error = 0, ""
        self.stopped = self.closed = False

    @property
    def read(self) -> int:
        return self.exit_index.total()

    def add(self, rows: Sequence[PredictionRow]) -> None:
        for row in rows:
            if row.error:
                self.bad += 1
                self.first_error = self.first_error or f"{row.path}: {row.error}"
            else:
                self.exit_index[row.size] += 1

    def lines(self, flags: Predict, listed: Listed, gmacs: dict[int, float]) -> Iterator[str]:
        if self.stopped:
            yield f"stopped   after {self.read + self.bad} of {len(listed.names)} images"
        where = "" if flags.output == STDOUT else f", written to {flags.output}"
        bad = f", {self.bad} cannot be read (column error)" if self.bad else ""
        left_out = f", {listed.left_out} other files left out" if listed.left_out else ""
        yield f"images    {self.read} predicted{bad}{left_out}{where}"
        if flags.cascade and self.read:
            shares = [self.exit_index[str(size)] / self.read for size in flags.cascade]
            costs = np.cumsum([gmacs[size] for size in flags.cascade])
            told = "  ".join(f"{size} px {100 * part:.1f}%" for size, part in zip(flags.cascade, shares, strict=True))
            saved = saving(float(costs @ shares), gmacs[flags.cascade[-1]])
            yield f"cascade   decided at {told}: {saved} compute than {flags.cascade[-1]} px alone"


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """The first Ctrl-C only fills the list, so that rows are written whole; the second one ends the process."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _write(flags: Predict, listed: Listed, evaluator: Evaluator, cascade: Cascade, classes: Sequence[str]) -> Tally:
    """Batch after batch, in order: each process takes every n-th, the main one writes them all."""
    accelerator, tally = evaluator.accelerator, Tally()
    file = RowFile(flags.output, min(TOP, len(classes))) if accelerator.is_main_process else None
    count = len(listed.names)
    draws = console.bars(accelerator.is_main_process) and not (flags.output == STDOUT and sys.stdout.isatty())
    with interruptible() as asked, tqdm(total=count, unit="image", disable=not draws) as bar:
        own = _answered(listed, evaluator, cascade, classes)
        for _ in range(-(-count // (evaluator.batch_size * accelerator.num_processes))):  # as often on each process
            gathered = gather_object([(next(own, []), bool(asked), file is not None and file.closed)])
            for rows, _, _ in gathered:
                if file is not None:
                    file.add(rows)
                tally.add(rows)
                bar.update(len(rows))
            tally.stopped, tally.closed = (any(part[place] for part in gathered) for place in (1, 2))
            if tally.stopped or tally.closed:
                break
    if file is not None:
        file.close()
    return tally


def _answered(
    listed: Listed, evaluator: Evaluator, cascade: Cascade, classes: Sequence[str]
) -> Iterator[list[PredictionRow]]:
    """The rows of this process's batches."""
    here = str(Path.cwd())[1:]
    inside = [name[1:] if name.startswith("/") else f"{here}/{name}" for name in listed.names]
    unreadable = {i: listed.unreadable[name] for i, name in enumerate(listed.names) if name in listed.unreadable}
    files, size = Files(Index.of_files(Path("/"), inside, [0] * len(inside)), unreadable), evaluator.batch_size
    step = size * evaluator.accelerator.num_processes
    own = range(evaluator.accelerator.process_index * size, len(inside), step)
    requests = [np.arange(first, min(first + size, len(inside))) for first in own]
    builder = EvalBatchBuilder(files, cascade.sizes, leave_out=True)
    for ids, batch in zip(requests, by_threads(requests, builder, evaluator.threads, evaluator.timeout_s), strict=True):
        rows = {
            int(i): row for i, row in zip(batch.ids, _rows(listed, batch, evaluator, cascade, classes), strict=True)
        }
        missing = [i for i in ids.tolist() if i not in rows]
        rows |= {
            i: PredictionRow(listed.names[i], error=reason) for i, (_, reason) in zip(missing, batch.bad, strict=True)
        }
        yield [rows[i] for i in ids.tolist()]


def _rows(
    listed: Listed, batch: EvalBatch, evaluator: Evaluator, cascade: Cascade, classes: Sequence[str]
) -> list[PredictionRow]:
    """One for each image that was read."""
    if not len(batch.ids):
        return []
    probabilities, exit_index = cascade.predict(evaluator, batch.images)
    best = probabilities.topk(min(TOP, len(classes)), 1)
    names = ["+".join(map(str, spec.sizes)) for spec in cascade.exits]
    return [
        PredictionRow(listed.names[i], tuple(zip([classes[c] for c in labels], values, strict=True)), names[place])
        for i, labels, values, place in zip(
            batch.ids.tolist(), best.indices.tolist(), best.values.tolist(), exit_index, strict=True
        )
    ]
