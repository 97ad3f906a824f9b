"""The run's side of the process that sends it: starts it, passes on what it tells, and waits for it at the end."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.runs.mirror.sender import CLOSE, SETTLE, Job
from toolkit.system.console import LIFE_SIGN_S

log = logging.getLogger(__name__)

SILENT_S = 5.0  # from when on a line says that uploads are waited for
MOST_DEATHS = 5  # of the process, by which it is given up
CLOSE_S = 15.0  # longest wait for the right to write to be given back
MODULE = "toolkit.runs.mirror.sender"


class Uploader:
    """A process that sends what `job` says; started again if it dies. `lost`: called if another machine takes over."""

    def __init__(self, job: Job, lost: Callable[[str], object]) -> None:
        self._job, self._lost = job, lost
        self._settled = self._asked = 0
        self._failure, self._left, self._deaths, self._over = "", 0, 0, False
        self.is_lost = False  # another machine has taken over
        self._arrived = time.monotonic()
        self._changed = threading.Condition()
        self._process = self._started()

    def settle(self, wait_s: float) -> str:
        """Wait until the store has everything; returns why it has not if nothing arrives there for `wait_s`."""
        began, told = time.monotonic(), 0.0
        with self._changed:
            self._asked = request = self._asked + 1
            self._arrived = began
        self._ask(f"{SETTLE} {request}")
        while True:
            with self._changed:
                if self._settled >= request:
                    return ""
                self._changed.wait(0.2)
                silent = time.monotonic() - self._arrived
                if self.is_lost or silent > wait_s:
                    return self._failure or f"no answer for {wait_s:g} s"
            now = time.monotonic()
            if now - began > SILENT_S and now - told > LIFE_SIGN_S:
                told = now
                log.info("uploading %.1f MB to %s", self._left / 1e6, self._job.url)

    def left(self) -> int:
        """Bytes that were not sent when the store was last waited for."""
        return self._left

    def close(self) -> None:
        self._over = True
        self._ask(CLOSE)
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _started(self) -> "subprocess.Popen[str]":
        here = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        environment = {"AWS_MAX_ATTEMPTS": "2", **os.environ, "PYTHONPATH": path}  # it tries again itself
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal goes to a whole group
        )
        assert process.stdin is not None
        process.stdin.write(self._job.to_line())
        process.stdin.flush()
        threading.Thread(target=self._listen, args=(process,), daemon=True, name="upload").start()
        return process

    def _ask(self, request: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        except OSError:
            log.debug("the process that uploads is gone")

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._heard(json.loads(line))
        code = process.wait()
        if self._over:
            return
        self._deaths += 1
        told = "it is started again" if self._deaths < MOST_DEATHS else "nothing more is uploaded"
        log.warning("the process that uploads to %s ended (%d); %s", self._job.url, code, told)
        with self._changed:
            self._failure = f"the process that uploads ended ({code})"
        time.sleep(SILENT_S)
        if not self._over and self._deaths < MOST_DEATHS:
            self._process = self._started()
            if self._asked > self._settled:
                self._ask(f"{SETTLE} {self._asked}")

    def _heard(self, told: dict[str, Any]) -> None:
        if "log" in told:
            log.log(told["level"], "%s", told["log"])
        if "lost" in told:
            self.is_lost = True
            self._lost(told["lost"])
        with self._changed:
            self._failure = told.get("failed", self._failure)
            self._left = told.get("left", self._left)
            if "settled" in told:
                self._settled, self._failure = told["settled"], ""
            if "silent_s" in told:
                self._arrived = max(self._arrived, time.monotonic() - told["silent_s"])
            self._changed.notify_all()
