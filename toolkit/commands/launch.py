"""Start a command on several processes: `accelerate launch` with its flags and configs, whose last line and exit code
are those of your command. Flags of the launcher come first, then a command of toolkit, or a script.

After Ctrl-C, SIGTERM or a closed terminal it waits for the save, however long that takes.

Example: toolkit launch --config_file accelerate_configs/multi_gpu.yaml train multi --data-root DIR --amp
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

import psutil

from toolkit.system import console
from toolkit.system.errors import InputError
from toolkit.system.exit_codes import DONE, FAILED, exit_code
from toolkit.system.preemption import EXIT_CODE, SIGNALS

# The agent of torch would end by these with a traceback, and kill after 30 s what still saves.
LEFT_TO_AGENT = {"PET_SIGNALS_TO_HANDLE": "SIGQUIT", "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT"}
# They tell that a process has ended, which its own last line has told, or that flags have their defaults.
WORDY = (
    *("accelerate.commands.launch", "torch.distributed.run"),
    *("torch.distributed.elastic.agent.server.api", "torch.distributed.elastic.multiprocessing.api"),
)


def code_of(status: int) -> int:
    """An exit code as shells give it, of one that is negative after a signal."""
    return status if status >= 0 else 128 - status


def ended(pid: int) -> int:
    """Wait for a child, and leave it to its owner to collect; returns its exit code."""
    with contextlib.suppress(ChildProcessError):  # collected in the meantime
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if result is not None:
            return result.si_status if result.si_code == os.CLD_EXITED else code_of(-result.si_status)
    return DONE


def pass_on(number: int, _: FrameType | None) -> None:
    """Pass a signal on to all processes, wait for them, and end as the worst of them did."""
    started = psutil.Process().children()
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    codes = [ended(process.pid) for process in started]
    failed = [code for code in codes if code not in (DONE, EXIT_CODE)]
    raise SystemExit(max(failed or codes, default=code_of(-number)))


def launched(words: Sequence[str]) -> int:
    """Launch, and return the exit code of the command."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from toolkit.commands import TABLE

    os.environ.update(LEFT_TO_AGENT)
    for name in WORDY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    flags = launch_command_parser().parse_args([*words])
    if flags.training_script in {entry.words.split()[0] for group in TABLE.values() for entry in group}:
        flags.training_script_args = [flags.training_script, *flags.training_script_args]
        flags.module, flags.training_script = True, "toolkit"
    flags.quiet = False  # it would hide the exit code
    try:
        launch_command(flags)
    except subprocess.CalledProcessError as error:  # of a single process
        return code_of(error.returncode)
    except (ValueError, FileNotFoundError) as error:  # flags of the launcher, or its config
        raise InputError(str(error)) from error
    except ChildFailedError as error:  # of several
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            console.say(f"error: the process of rank {rank} was ended by {name}", sys.stderr)
        return code_of(failure.exitcode)
    return DONE


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        return exit_code(lambda: console.say(f"usage: toolkit launch [FLAG ...] COMMAND ...\n\n{__doc__}", sys.stdout))
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    codes = [FAILED]
    return exit_code(lambda: codes.append(launched(argv))) or codes[-1]
