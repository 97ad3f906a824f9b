"""Loads uint8 batches in order, a few ahead: in threads, or in processes for work that holds the interpreter lock."""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from toolkit.data.loading.batches import BatchBuilder, R, T, load
from toolkit.data.sources.index import Index
from toolkit.system.errors import WORKER_DIED, InputError, LoaderError, PreemptedError, expected
from toolkit.system.preemption import sets_handlers

AHEAD = 2  # batches in flight beyond the one that the caller takes
PIECE = 8  # minimum number of images that one thread takes at a time
STOP_S = 6  # how long a worker process survives SIGTERM: by then all ranks know the step to stop at
LEAVE = signal.SIGALRM  # makes a worker process exit at once, with code 0: torch raises for any other code
ASK_S = 1.0  # how often the caller is asked, while no batch comes, whether to wait on
CLOSE_S = 5.0  # longest wait for the threads on close
TIMED_OUT = "DataLoader timed out"  # how torch's error begins
HINT = "is the storage of --data-root alive? --loader-timeout-s waits longer"


def wait_on() -> None:
    """What is asked while no batch comes; another such function may raise, to end the waiting."""


class Threads:
    """A pool of daemon threads: one that hangs in a read does not keep the process alive."""

    def __init__(self, count: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True, name="loader") for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, work = task
            if self._closed:
                future.cancel()
                continue
            try:
                work()
                future.set_result(None)
            except BaseException as error:  # raised where the batch is taken
                future.set_exception(error)

    def submit(self, work: Callable[[], None]) -> Future[None]:
        future: Future[None] = Future()
        self._tasks.put((future, work))
        return future

    def close(self) -> None:
        """Let each thread finish its current task, for at most CLOSE_S in all; a thread that hangs is abandoned."""
        self._closed = True
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class _Pending(NamedTuple):
    spec: Any
    memory: Any
    pieces: list[Future[None]]


def _pieces(count: int, threads: int) -> Iterator[range]:
    length = max(PIECE, -(-count // threads))
    return (range(start, min(start + length, count)) for start in range(0, count, length))


def by_threads(
    batch_specs: Iterable[R],
    builder: BatchBuilder[R, T],
    threads: int,
    timeout_s: float,
    waiting: Callable[[], None] = wait_on,
) -> Iterator[T]:
    """One batch per spec, in order; with 0 threads, loaded in the calling thread.

    An error is raised in place of its batch; LoaderError if a thread takes longer than `timeout_s`. `waiting`: called
    about once a second while a batch is waited for.
    """
    if threads == 0:
        yield from (load(builder, spec) for spec in batch_specs)
        return
    pool, pending = Threads(threads), deque[_Pending]()

    def taken() -> T:
        spec, memory, pieces = pending.popleft()
        for piece in pieces:
            deadline = time.monotonic() + timeout_s
            while not piece.done() and not wait([piece], min(ASK_S, timeout_s)).done:
                waiting()
                if time.monotonic() > deadline:
                    raise LoaderError(f"a loader thread gave nothing for {timeout_s:g} s: {HINT}")
            piece.result()
        return builder.close(spec, memory)

    try:
        for spec in batch_specs:
            count, memory = builder.open(spec)
            work = [
                pool.submit(lambda slots=slots, r=spec, m=memory: builder.fill(r, m, slots))  # type: ignore[misc]
                for slots in _pieces(count, threads)
            ]
            pending.append(_Pending(spec, memory, work))
            if len(pending) > AHEAD:
                yield taken()
        while pending:
            yield taken()
    finally:
        pool.close()


class _Loading(Dataset[Any]):
    def __init__(self, builder: BatchBuilder[Any, Any]) -> None:
        self._builder = builder

    def __getitem__(self, spec: Any) -> Any:
        """One batch, or its error as a value: torch would wrap a raised error in a worker's traceback.

        The batch goes into shared memory here. Later, in the thread of the queue, a full /dev/shm would reach nobody.
        """
        try:
            batch = load(self._builder, spec)
            _share(batch)
            return batch
        except (InputError, LoaderError) as error:
            return error
        except RuntimeError as error:
            refused = expected(error)
            if not isinstance(refused, LoaderError):
                raise
            return refused


def _share(batch: Any) -> None:
    """Move the tensors of a batch into shared memory; raises RuntimeError if that is full."""
    if isinstance(batch, torch.Tensor):
        batch.share_memory_()
    elif isinstance(batch, Mapping | tuple | list):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            _share(part)


def _outlive_a_stop(_: int) -> None:
    """Keep a worker alive for STOP_S after SIGTERM, which some schedulers send to every process of a job.

    The run stops at a later step and saves, and needs batches until then. An idle worker exits by itself.
    """
    signal.signal(LEAVE, lambda number, frame: os._exit(0))
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(STOP_S))


def _as_it_is(value: Any) -> Any:
    return value


def _without_traces(batches: Iterator[T]) -> Iterator[T]:
    """The same batches; the traceback of an error does not keep the iterator alive.

    Otherwise the garbage collector would finalize the iterator, and close its queues first. The workers would never
    receive the message to exit, and the thread that runs the collector would wait 10 s for each.
    """
    try:
        yield from batches
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        del batches


def _patient(batches: Iterator[T], timeout_s: float, waiting: Callable[[], None]) -> Iterator[T]:
    """The same batches; while none comes, torch's timeout is not raised before `timeout_s`, but `waiting` called."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith(TIMED_OUT) or time.monotonic() > deadline:
                raise
            waiting()
            continue
        yield batch
        deadline = time.monotonic() + timeout_s


def by_processes(
    batch_specs: Iterable[R],
    builder: BatchBuilder[R, T],
    workers: int,
    timeout_s: float,
    waiting: Callable[[], None] = wait_on,
) -> Iterator[T]:
    """As `by_threads`, in forked worker processes: for work that holds the interpreter lock for each image."""
    if workers == 0:
        yield from (load(builder, spec) for spec in batch_specs)
        return
    loader = DataLoader(
        _Loading(builder),
        batch_size=None,
        sampler=batch_specs,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        timeout=min(ASK_S, timeout_s),
        worker_init_fn=_outlive_a_stop,
        generator=torch.Generator(),  # torch draws the workers' seed from it, not from the generator of training
        multiprocessing_context="fork",  # other methods run a user's unguarded script again
    )
    others = multiprocessing.active_children()
    iterator = iter(loader)
    batches = _patient(iterator, timeout_s, waiting)
    own = [process for process in multiprocessing.active_children() if process not in others]
    try:
        for batch in _without_traces(batches):
            if isinstance(batch, InputError | LoaderError):
                raise batch
            yield batch
    except PreemptedError:
        _end(own)
        raise
    except RuntimeError as error:
        if str(error).startswith(TIMED_OUT):
            _end(own)
            raise LoaderError(f"a loader process gave nothing for {timeout_s:g} s: {HINT}") from None
        raise (expected(error) or error) from None
    except (ConnectionError, EOFError) as error:
        if str(error).startswith("Caught"):  # torch's prefix for an error raised by the builder
            raise
        raise LoaderError(f"{WORKER_DIED}: it left half a batch behind") from None
    finally:
        with _deaths_ignored():
            del batches, iterator  # the last references: torch now stops the workers and waits for them


@contextlib.contextmanager
def _deaths_ignored() -> Iterator[None]:
    """A worker that is killed meanwhile raises nothing: else torch's handler of SIGCHLD would, in the main thread."""
    if not sets_handlers():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _end(processes: Iterable[Any]) -> None:
    """End worker processes at once; torch would wait for those that hang."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, LEAVE)


def by_need(index: Index) -> Callable[[Iterable[R], BatchBuilder[R, T], int, float], Iterator[T]]:
    """`by_processes` for a data set passed from Python, whose code need not be safe in threads; else `by_threads`."""
    return by_threads if index.items is None else by_processes


@dataclass(frozen=True)
class _Calls:
    """Builds, in place of a batch, the result of a call."""

    call: Callable[[Any], Any]

    def open(self, spec: Any) -> tuple[int, list[Any]]:
        return 1, []

    def fill(self, spec: Any, memory: list[Any], slots: range) -> None:
        memory.append(self.call(spec))

    def close(self, spec: Any, memory: list[Any]) -> Any:
        return memory[0]


def call_in_processes(
    call: Callable[[Any], Any], specs: Iterable[Any], workers: int, timeout_s: float
) -> Iterator[Any]:
    """`call(spec)` for each spec, in order, in forked worker processes: for a user's code, which may keep state.

    Data sets open files when they are first read, and generators move: none of that happens in this process.
    """
    return by_processes(specs, _Calls(call), workers, timeout_s)
