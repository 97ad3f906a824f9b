"""Prediction rows for files on disk or at URLs, batch by batch; each is read and decoded once and not kept."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.config.data_roots import is_url
from toolkit.config.settings import Settings
from toolkit.data.images.decode import decode
from toolkit.data.images.header import read_header
from toolkit.data.loading.batches import EvalBatch, EvalBatchBuilder, Images
from toolkit.data.loading.workers import by_need
from toolkit.data.sources.index import Index
from toolkit.data.sources.paths import Listed
from toolkit.data.sources.read import read_bytes
from toolkit.data.sources.url_paths import read_url
from toolkit.models.cascade import Cascade
from toolkit.models.evaluator import Evaluator
from toolkit.system.errors import BadSampleError
from toolkit.tools.prediction_rows import PredictionRow

TOP = 5  # most classes in a row


class Files:
    """Image reader that reads each file once, header and pixels together; an index would read all headers first."""

    def __init__(self, index: Index, unreadable: Mapping[int, str], names: Sequence[str]) -> None:
        self.index, self._unreadable, self._given = index, unreadable, names

    @classmethod
    def of(cls, listed: Listed, settings: Settings) -> "Files":
        """The listed files, as a run with these settings sees them."""
        here, names = str(Path.cwd())[1:], listed.names
        inside = [name[1:] if name.startswith("/") else f"{here}/{name}" for name in names]
        reasons = {i: listed.unreadable[name] for i, name in enumerate(names) if name in listed.unreadable}
        return cls(Index.of_files(Path("/"), inside, [0] * len(inside)).seen_by(settings), reasons, names)

    def whole(self, i: int) -> np.ndarray:
        """Image i, upright, H x W x 3 uint8, decoded at full resolution; raises BadSampleError."""
        if i in self._unreadable:
            raise BadSampleError(self.index.names[i], self._unreadable[i])
        name = self._given[i]
        content = read_url(name) if is_url(name) else read_bytes(self.index, i)
        try:
            return decode(content, orientation=read_header(io.BytesIO(content)).orientation, gray=self.index.gray)
        except ValueError as error:
            raise BadSampleError(self.index.names[i], str(error)) from None


@dataclass(frozen=True)
class PredictionStream:
    """Predicts the images of `listed` with a model and a cascade; `images`: reads them."""

    evaluator: Evaluator
    cascade: Cascade
    classes: tuple[str, ...]
    listed: Listed
    images: Images

    @property
    def top(self) -> int:
        """Number of classes in each row."""
        return min(TOP, len(self.classes))

    @property
    def rounds(self) -> int:
        """Number of batches per process; in the last round some processes have no images."""
        return -(-len(self.listed.names) // (self.evaluator.batch_size * self.evaluator.accelerator.num_processes))

    def rows(self) -> Iterator[list[PredictionRow]]:
        """Rows of this process's batches: every n-th batch with n processes."""
        names, size, accelerator = self.listed.names, self.evaluator.batch_size, self.evaluator.accelerator
        firsts = range(accelerator.process_index * size, len(names), size * accelerator.num_processes)
        batches = [np.arange(first, min(first + size, len(names))) for first in firsts]
        builder, load = EvalBatchBuilder(self.images, self.cascade.sizes, leave_out=True), by_need(self.images.index)
        loaded = load(batches, builder, self.evaluator.threads, self.evaluator.timeout_s)
        for ids, batch in zip(batches, loaded, strict=True):
            rows = {int(i): row for i, row in zip(batch.ids, self._predicted(batch), strict=True)}
            missing = [i for i in ids.tolist() if i not in rows]
            rows |= {
                i: PredictionRow(names[i], error=reason) for i, (_, reason) in zip(missing, batch.bad, strict=True)
            }
            yield [rows[i] for i in ids.tolist()]

    def _predicted(self, batch: EvalBatch) -> list[PredictionRow]:
        """One row for each readable image of the batch."""
        if not len(batch.ids):
            return []
        evaluator = self.evaluator
        probabilities, exit_index = self.cascade.predict(evaluator, batch.images)
        best, confidence = probabilities.topk(self.top, 1), evaluator.bound.confidence(probabilities)
        sizes = ["+".join(map(str, spec.sizes)) for spec in self.cascade.exits]
        return [
            PredictionRow(
                path=self.listed.names[i],
                best=self._named(best.indices[row].tolist(), best.values[row].tolist()),
                size=sizes[exit_index[row]],
                label=evaluator.task.answer(probabilities[row].numpy(), self.classes),
                confidence=float(confidence[row]),
            )
            for row, i in enumerate(batch.ids.tolist())
        ]

    def _named(self, labels: Sequence[int], values: Sequence[float]) -> tuple[tuple[str, float], ...]:
        return tuple(zip([self.classes[label] for label in labels], values, strict=True))
