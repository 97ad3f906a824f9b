"""Checkpoints of a run with any number of processes, committed in the background while training continues."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from toolkit.models.collectives import gather_objects
from toolkit.runs import best_model
from toolkit.runs.checkpoint import Store, Tensors
from toolkit.runs.progress import Progress
from toolkit.runs.snapshot import Snapshot
from toolkit.system.errors import SaveError

T = TypeVar("T")

log = logging.getLogger(__name__)


class Saver:
    """Saves checkpoints. All processes make the same calls.

    Rank 0 collects the running means of all and copies the rest of the state to host memory while training waits,
    then writes it in a thread, one checkpoint at a time. If that fails, all raise SaveError at the next call.
    """

    def __init__(
        self, accelerator: Accelerator, store: Store, best: Path, newest: tuple[int, int] | None = None
    ) -> None:
        self._accelerator, self._store, self._best = accelerator, store, best
        self.newest = newest  # steps and epochs done at the last save
        self.seconds = 0.0  # that training waited for saves
        self._reported = 0.0
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self,
        progress: Progress,
        means: Tensors,
        capture: Callable[[], Snapshot],
        metadata: Mapping[str, Any],
        best: bool = False,
    ) -> None:
        """Save the running means of each process and, of rank 0 only, the copies that `capture` returns.

        `best`: also export the weights, as the best model so far.
        """
        started, step = time.perf_counter(), progress.step
        of_all = self._meet(step, means)
        if self._accelerator.is_main_process:
            exported = dict(progress.best) if best else {}
            snapshot = replace(capture(), means={name: torch.stack([of[name] for of in of_all]) for name in means})
            self._writing = self._writer.submit(self._write, step, snapshot, metadata, exported)
        self.newest = progress.at()
        self.seconds += time.perf_counter() - started

    def lap(self) -> float:
        """Seconds that training waited for saves since the last call."""
        seconds, self._reported = self.seconds - self._reported, self.seconds
        return seconds

    def join(self, step: int) -> None:
        """Wait until everything is on disk."""
        self._meet(step)

    def close(self) -> None:
        """Wait for the write in progress, without the other processes, because the run is over."""
        self._writer.shutdown()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, snapshot: Snapshot, metadata: Mapping[str, Any], best: Mapping[str, Any]) -> None:
        try:
            self._store.commit(step, snapshot.files(), metadata)
        except Exception:
            self._store.abandon(step)
            raise
        if best:
            best_model.save(self._best, snapshot.exported, best)

    def _meet(self, step: int, own: T | None = None) -> list[T]:
        """Wait for the write in progress; returns `own` of all processes. Raises SaveError on all if one failed."""
        failure = ""
        try:
            self._wait()
        except SaveError as error:
            failure = str(error)
        except Exception as error:  # a bug: the other processes must fail, too
            log.exception("the checkpoint of step %d could not be written", step)
            failure = f"the checkpoint of step {step} could not be written: {type(error).__name__}: {error}"
        gathered: list[Any] = gather_objects((failure, own))
        if failed := next((told for told, _ in gathered if told), ""):
            raise SaveError(failed)
        return [of for _, of in gathered]
