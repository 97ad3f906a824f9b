"""Work of rank 0 alone that may take minutes, such as fetching a run, while all other ranks wait for it."""

import threading
from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator

from toolkit.models.collectives import from_main

T = TypeVar("T")

MEET_S = 5.0  # between two meetings of all ranks, so that none of them waits long in one


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """The result of `work`, which rank 0 runs in a thread, on all ranks; or its error."""
    if accelerator.num_processes == 1:
        return work()
    done: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="main work")
    if accelerator.is_main_process:
        thread.start()
    while True:
        if accelerator.is_main_process:
            thread.join(MEET_S)
        over, result, raised = from_main((bool(done or errors), done, errors))
        if over:
            break
    if raised:
        raise raised[0]
    return result[0]
