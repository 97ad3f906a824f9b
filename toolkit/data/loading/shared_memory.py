"""How many loader processes there is room for in /dev/shm, through which their batches come. Imports no torch."""

import logging
import os
from pathlib import Path

from toolkit.system import host, storage
from toolkit.system.errors import InputError

log = logging.getLogger(__name__)

PLACE = Path("/dev/shm")
USABLE = 0.9  # of what is free: other programs and libraries take some, too
PER_WORKER = 2  # batches that torch has each worker make ahead; one more is in use
MB = 1e6


def fit_workers(workers: int, batch_bytes: int, place: Path = PLACE) -> int:
    """At most `workers` processes, as many as have room for their batches; raises InputError if there is none for one.

    `batch_bytes`: of the largest batch of a process.
    """
    try:
        found = os.statvfs(place)
    except OSError:  # not on this system, or hidden: nothing to count
        return workers
    free = found.f_bavail * found.f_frsize
    processes = host.local_processes()
    fitting = int((USABLE * free / processes / batch_bytes - 1) // PER_WORKER)
    if fitting >= workers:
        return workers

    def arithmetic(count: int) -> str:
        of_all = f" in each of {processes} processes" if processes > 1 else ""
        needed = processes * (PER_WORKER * count + 1) * batch_bytes / MB
        return (
            f"{place} has {free / MB:.3g} MB free, and {count} loader process(es){of_all} with {PER_WORKER} batches of "
            f"{batch_bytes / MB:.3g} MB each, and one in use, need {needed:.3g} MB"
        )

    if fitting < 1:
        raise InputError(
            f"{arithmetic(1)}: raise it (docker run --shm-size=1g or --ipc=host), or lower --device-batch-size"
        )
    if host.is_main_process():
        log.warning("%s: only %d are started; %s", arithmetic(workers), fitting, storage.SHARED_MEMORY)
    return fitting
