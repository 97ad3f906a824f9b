"""Metrics to a dashboard, through Accelerate's trackers. A tracker never stops or changes a run."""

import importlib.util
import logging
import netrc
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from toolkit.errors import InputError
from toolkit.settings import Settings

log = logging.getLogger(__name__)

WANDB_HOST = "https://api.wandb.ai"
ANSWER_S = 5.0  # longest wait for wandb's server at the start
START_S = 8  # wandb's own, where the server answers but the run's registration hangs
FINISH_S = 60.0  # longest wait at the end for what is not uploaded yet; it stays on the disk
Scalar = float | int | str | bool


def check_installed(settings: Settings) -> None:
    """Raises InputError where the chosen dashboard's package is missing; Accelerate would drop it in silence."""
    if settings.log_with != "none" and importlib.util.find_spec(settings.log_with) is None:
        name = settings.log_with
        raise InputError(f"--log-with {name}: the package is not installed: pip install {name}")


def _flat(config: Mapping[str, Any]) -> dict[str, Scalar]:
    """Scalars only: TensorBoard raises on lists."""
    return {name: value if isinstance(value, Scalar) else str(value) for name, value in config.items()}


def _wandb_key() -> bool:
    """Whether wandb would find a key: in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB_HOST)).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(url: str) -> bool:
    """Whether anything answers there, however; a thread asks, as no timeout bounds the look-up of a name."""
    reply: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            urlopen(url, timeout=ANSWER_S).close()
            reply.put(True)
        except (OSError, ValueError, HTTPException) as error:
            refused = isinstance(getattr(error, "reason", error), SSLError)  # by us: wandb knows other certificates
            reply.put(isinstance(error, HTTPError) or refused)

    threading.Thread(target=ask, daemon=True, name="wandb probe").start()
    try:
        return reply.get(timeout=ANSWER_S)
    except queue.Empty:
        return False


def _start_wandb(settings: Settings, folder: Path) -> WandBTracker:
    import wandb

    def start(mode: str) -> WandBTracker:
        options = wandb.Settings(init_timeout=START_S, finish_timeout=FINISH_S, silent=True, console="off")
        tracker = WandBTracker(settings.wandb_project, dir=str(folder), name=folder.name, mode=mode, settings=options)
        tracker.start()
        return tracker

    later = f"`wandb sync {folder}/wandb/offline-run-*` uploads it later"
    mode = (os.environ.get("WANDB_MODE") or "auto") if settings.wandb_mode == "auto" else settings.wandb_mode
    if mode == "auto" and not _wandb_key():
        log.info("wandb     offline: no API key was found; %s", later)
        return start("offline")
    server = os.environ.get("WANDB_BASE_URL", WANDB_HOST)
    if mode == "auto" and not _answers(server):
        log.info("wandb     offline: %s does not answer; %s", urlsplit(server).hostname, later)
        return start("offline")
    try:
        tracker = start("online" if mode == "auto" else mode)
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        log.info("wandb     offline: %s; %s", str(error).splitlines()[0], later)
        return start("offline")
    log.info("wandb     %s", tracker.run.url or (f"offline: {later}" if mode == "offline" else mode))
    return tracker


def _open(settings: Settings, config: Mapping[str, Any], folder: Path, panel: Sequence[str]) -> GeneralTracker:
    """The dashboard, with the configuration stored and the axes named."""
    if settings.log_with == "tensorboard":
        tensorboard = TensorBoardTracker("tensorboard", logging_dir=str(folder))
        tensorboard.start()
        tensorboard.store_init_configuration(_flat(config))
        return tensorboard
    tracker = _start_wandb(settings, folder)
    tracker.store_init_configuration(_flat(config))
    tracker.run.define_metric("*", step_metric="global_step")
    for name in panel:
        tracker.run.define_metric(f"{name}/*", step_metric="epoch")
    return tracker


class Tracking:
    """The dashboard of one run, or nothing on processes other than the main one."""

    def __init__(self, tracker: GeneralTracker | None) -> None:
        self._tracker = tracker

    @classmethod
    def start(
        cls, settings: Settings, config: Mapping[str, Any], folder: Path, panel: Sequence[str], main: bool
    ) -> "Tracking":
        """Open the dashboard and store the configuration; `panel` names the figures counted in epochs."""
        if not main or settings.log_with == "none":
            return cls(None)
        try:
            return cls(_open(settings, config, folder, panel))
        except Exception as error:  # whatever a dashboard raises, training goes on
            log.warning("%s could not be started, going on without it: %s", settings.log_with, error)
            return cls(None)

    def log(self, values: Mapping[str, float], step: int, epoch: float) -> None:
        """Log numbers at optimizer step `step`, which is `epoch` epochs into the run."""
        if self._tracker is None:
            return
        row = {**values, "global_step": step, "epoch": epoch}
        try:
            if isinstance(self._tracker, WandBTracker):
                self._tracker.log(row)  # without `step`: wandb drops rows that go back, as after a resume
            else:
                self._tracker.log(row, step=step)
        except Exception as error:  # whatever a dashboard raises, training goes on
            log.warning("the dashboard failed and is left alone from here: %s", error)
            self._tracker = None

    def preempting(self) -> None:
        """Tell the dashboard that the run stops here and is to go on elsewhere."""
        try:
            if isinstance(self._tracker, WandBTracker):
                self._tracker.run.mark_preempting()
        except Exception as error:
            log.warning("the dashboard was not told of the preemption: %s", error)

    def finish(self) -> None:
        """Close the dashboard, once."""
        tracker, self._tracker = self._tracker, None
        try:
            if tracker is not None:
                tracker.finish()
        except Exception as error:
            log.warning("the dashboard could not be closed: %s", error)
