"""That all machines of a run see one run directory is tried before training, not assumed."""

import contextlib
import shutil
import socket
import time
import uuid
from pathlib import Path

from accelerate import Accelerator

from toolkit.models.collectives import from_main, gather_objects
from toolkit.system import files
from toolkit.system.errors import InputError, expected
from toolkit.system.exit_codes import is_first_here

SEEN_WITHIN_S = 10.0  # network file systems may show a new file late
POLL_S = 0.25


def check_shared(accelerator: Accelerator, folder: Path, advice: str) -> None:
    """Raise InputError, with `advice`, on all ranks unless each machine reads what rank 0 has just written there."""
    if accelerator.num_processes == 1:
        return
    told: tuple[str, str, Exception | None] = "", "", None
    trial = folder / f"{files.TRIAL}{uuid.uuid4().hex}"
    if accelerator.is_main_process:
        told = trial.name, f"rank 0 on host {socket.gethostname()}", _write(trial)
    name, writer, failure = from_main(told)
    if failure is not None:
        raise failure
    blind = is_first_here() and not _reads(folder / name)
    found = gather_objects(f"rank {accelerator.process_index} on host {socket.gethostname()}" if blind else "")
    if accelerator.is_main_process:
        shutil.rmtree(trial, ignore_errors=True)
    if others := [place for place in found if place]:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise InputError(f"--output-dir {folder}: {others[0]}{more} does not see what {writer} wrote there: {advice}")


def _write(trial: Path) -> Exception | None:
    """Write the token, a file in a folder that bears it; returns the error, which all ranks must raise."""
    try:
        trial.mkdir()
        (trial / "token").write_text(trial.name)
    except OSError as error:
        return expected(error)
    return None


def _reads(trial: Path) -> bool:
    deadline = time.monotonic() + SEEN_WITHIN_S
    while True:
        with contextlib.suppress(OSError):
            if (trial / "token").read_text() == trial.name:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
