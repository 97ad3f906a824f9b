"""Checkpoints of a run with any number of processes, committed in the background while training continues."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from toolkit.models.collectives import gather_objects
from toolkit.runs import best_model, checkpoint
from toolkit.runs.checkpoint import Store, Tensors
from toolkit.runs.generators import generator_state
from toolkit.runs.progress import Progress
from toolkit.runs.snapshot import Snapshot
from toolkit.system.errors import SaveError

log = logging.getLogger(__name__)


class Saver:
    """Saves checkpoints. All processes make the same calls.

    If one process fails, all raise SaveError and nothing is committed. Each process writes its own random generators
    and running means. Rank 0 copies the rest to host memory while training waits, then writes it in a thread, one
    checkpoint at a time.
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
        own: Tensors,
        capture: Callable[[], Snapshot],
        metadata: Mapping[str, Any],
        best: bool = False,
    ) -> None:
        """Save `own` of each process and, on rank 0 only, the copies that `capture` returns.

        `best`: also export the weights, as the best model so far.
        """
        started, step = time.perf_counter(), progress.step

        def stage() -> None:
            self._wait()
            rank = self._accelerator.process_index
            self._store.stage(step, checkpoint.rank_file(rank), {**generator_state(), **own})

        self._everywhere(stage, step)
        if self._accelerator.is_main_process:
            exported = dict(progress.best) if best else {}
            self._writing = self._writer.submit(self._write, step, capture(), metadata, exported)
        self.newest = progress.at()
        self.seconds += time.perf_counter() - started

    def lap(self) -> float:
        """Seconds that training waited for saves since the last call."""
        seconds, self._reported = self.seconds - self._reported, self.seconds
        return seconds

    def join(self, step: int) -> None:
        """Wait until everything is on disk."""
        self._everywhere(self._wait, step)

    def close(self) -> None:
        """Wait for the write in progress, without the other processes, because the run is over."""
        self._writer.shutdown()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, snapshot: Snapshot, metadata: Mapping[str, Any], best: Mapping[str, Any]) -> None:
        for rank in range(self._accelerator.num_processes):
            part = self._store.staging(step) / checkpoint.rank_file(rank)
            if not part.exists():
                raise SaveError(f"{part}: rank {rank} wrote it and rank 0 does not see it: is the storage shared?")
        self._store.commit(step, snapshot.files(), metadata)
        if best:
            best_model.save(self._best, snapshot.exported, best)

    def _everywhere(self, work: Callable[[], None], step: int) -> None:
        """Run `work` on each process; raises SaveError on all of them if it failed on one."""
        failure = ""
        try:
            work()
        except SaveError as error:
            failure = str(error)
        except Exception as error:  # a bug: the other processes must fail, too
            log.exception("the checkpoint of step %d could not be written", step)
            failure = f"the checkpoint of step {step} could not be written: {type(error).__name__}: {error}"
        failures = gather_objects(failure)
        if not any(failures):
            return
        if self._accelerator.is_main_process:
            self._store.abandon(step)
        rank = next(rank for rank, text in enumerate(failures) if text)
        raise SaveError(failures[rank] + (f" (met by rank {rank})" if len(failures) > 1 else ""))
