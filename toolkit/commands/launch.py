"""Start a command on several processes: `accelerate launch` with its flags and configs, whose last line and exit code
are those of your command. Flags of the launcher come first, then a command of toolkit, or a script; `accelerate launch
--help` lists the flags. Without a config there is a process for each GPU, or one.

Once it trains, Ctrl-C, SIGTERM or a closed terminal save it first, however long that takes.

Example: toolkit launch --config_file accelerate_configs/multi_gpu.yaml train multi --data-root DIR --amp
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import NoReturn

import psutil

from toolkit.system import console
from toolkit.system.errors import InputError, nearest
from toolkit.system.exit_codes import DONE, FAILED, exit_code
from toolkit.system.preemption import EXIT_CODE, HANGUP, SAME_EVENT_S, SIGNALS

# The agent of torch would end by these with a traceback, and kill after 30 s what is still saving.
LEFT_TO_AGENT = {"PET_SIGNALS_TO_HANDLE": "SIGQUIT", "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT"}
# They report that a process has ended, which printed why, or that flags have their defaults.
WORDY = (
    *("accelerate.commands.launch", "torch.distributed.run"),
    *("torch.distributed.elastic.agent.server.api", "torch.distributed.elastic.multiprocessing.api"),
)
POLL_S = 0.1
AFTER_FAILURE_S = 30.0  # for the others once a process has failed, as torch's agent gives them
AFTER_REPETITION_S = 5.0  # for all once a stop was asked for twice: they leave without saving


class Stop:
    """Signal handler: passes the signal on to all processes, waits for them, and exits with their code."""

    def __init__(self) -> None:
        self._first = 0.0
        self._ends = float("inf")

    def __call__(self, number: int, _: FrameType | None) -> None:
        now, waiting = time.monotonic(), bool(self._first)
        self._first = self._first or now
        if waiting and number != HANGUP and now - self._first > SAME_EVENT_S:
            self._ends = min(self._ends, now + AFTER_REPETITION_S)
        started = psutil.Process().children()
        for process in started:
            if not has_got(process, number):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        if not waiting:  # else the handler of the first signal waits
            self._leave(number, started)

    def _leave(self, number: int, alive: list[psutil.Process]) -> NoReturn:
        codes: list[int] = []
        while alive:
            gone, alive = psutil.wait_procs(alive, timeout=POLL_S)
            codes += [process.returncode or DONE for process in gone]
            if any(process.returncode not in (DONE, EXIT_CODE) for process in gone):  # the others may wait for it
                for process in alive:
                    process.terminate()
                self._ends = min(self._ends, time.monotonic() + AFTER_FAILURE_S)
            if time.monotonic() > self._ends:
                for process in alive:
                    process.kill()
        if all(code == -number for code in codes):  # none had a handler yet
            shown = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            console.say(f"stopped by {shown} before training began; run the same command again", sys.stderr)
            raise SystemExit(EXIT_CODE)
        failed = [code for code in codes if code not in (DONE, EXIT_CODE)]
        raise SystemExit(code_of((failed or [max(codes)])[0]))


def code_of(status: int) -> int:
    """An exit code as shells give it, of one that is negative after a signal."""
    return status if status >= 0 else 128 - status


def has_got(process: psutil.Process, number: int) -> bool:
    """Whether a terminal sent the signal to a process too: Ctrl-C goes to the whole group in its foreground."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return number == signal.SIGINT and sys.stdin.isatty() and os.getpgid(process.pid) == os.getpgrp()
    return False


def refuse(told: str) -> NoReturn:
    raise InputError(f"{told}; flags of the launcher come before the command, those of the command behind it")


def flags_of(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """The flags of the launcher, and what to launch: a script, a module, or a command of toolkit."""
    from toolkit.commands import TABLE

    parser.error = refuse  # type: ignore[method-assign, assignment]
    flags = parser.parse_args([*words])
    flags.quiet = False  # it would hide the exit code
    commands = {entry.words.split()[0] for group in TABLE.values() for entry in group} - {"launch"}
    if not (flags.module or flags.no_python or Path(flags.training_script).is_file()):
        if flags.training_script not in commands:
            word = flags.training_script
            raise InputError(f"{word}: neither a script nor a command of toolkit{nearest(word, commands)}")
        flags.training_script_args = [flags.training_script, *flags.training_script_args]
        flags.module, flags.training_script = True, "toolkit.__main__"
    return flags


def refuse_threads(flags: Namespace) -> None:
    """Raise InputError where Accelerate would call the command in a thread, which gets no signals."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    file = flags.config_file or default_config_file
    kind = load_config_from_file(file).distributed_type if Path(file).is_file() else "NO"
    if (flags.tpu or kind == "XLA") and not (flags.multi_gpu or flags.cpu):
        raise InputError(
            f"{'--tpu' if flags.tpu else f'{file}: distributed_type XLA'} calls the command in a thread, where no "
            "signal can save it: give distributed_type MULTI_GPU, as in accelerate_configs/gcp_tpu.yaml"
        )


def keep_signals_from_agent() -> None:
    """Make the agent of torch leave all signals to `Stop`."""
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.launcher.api import LaunchConfig

    os.environ.update(LEFT_TO_AGENT)
    if "signals_to_handle" not in {field.name for field in fields(LaunchConfig)}:  # torch 2.9 has no such variable
        vars(api)["signal"] = SimpleNamespace(**{**vars(signal), "signal": lambda *_: None})


def launched(words: Sequence[str]) -> int:
    """Launch, and return the exit code of the command."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    keep_signals_from_agent()
    for name in WORDY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    flags = flags_of(launch_command_parser(), words)
    try:
        refuse_threads(flags)
        launch_command(flags)
    except subprocess.CalledProcessError as error:  # of a single process
        return reported(error.returncode, "the process")
    except ChildFailedError as error:  # of several
        rank, failure = error.get_first_failure()
        return reported(failure.exitcode, f"the process of rank {rank}")
    except InputError:
        raise
    except Exception as error:  # before a process started: flags of the launcher, its config, its environment
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise InputError(f"accelerate launch: {kind}{error}") from error
    return DONE


def reported(status: int, name: str) -> int:
    """The exit code of a process that failed; one that a signal ended could not print why."""
    if status < 0:
        console.say(f"error: {name} was ended by {signal.Signals(-status).name}", sys.stderr)
    return code_of(status)


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        return exit_code(lambda: console.say(f"usage: toolkit launch [FLAG ...] COMMAND ...\n\n{__doc__}", sys.stdout))
    stop = Stop()
    for number in SIGNALS:
        if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup, as in `Preemption`
            signal.signal(number, stop)
    codes = [FAILED]
    return exit_code(lambda: codes.append(launched(argv))) or codes[-1]
