"""Weights & Biases: online if there is a key and a network, else a folder that `wandb sync` uploads later.

wandb is imported when a run starts, so that its absence can be checked before.
"""

import logging
import netrc
import os
import queue
import shlex
import threading
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from accelerate.tracking import WandBTracker

from toolkit.runs.dashboards.base import DashboardRun, TrackerDashboard, flat
from toolkit.runs.dashboards.names import AXES
from toolkit.runs.dashboards.tables import Errors
from toolkit.system.errors import first_line

log = logging.getLogger(__name__)

WANDB_HOST = "https://api.wandb.ai"
ANSWER_S = 5.0  # longest wait for a reply of wandb's server before a run starts
# Suffix of a run's id after the server failed to register it: wandb does not release the id of a failed start.
UNREGISTERED = "-offline"
START_S = 8  # wandb's own timeout, for a server that answers but hangs while registering the run
TRUE = ("1", "true", "yes", "on", "y", "t")
STAGING = "WANDB_DATA_DIR"  # the folder to which wandb copies files before it uploads them
# Longest wait for the upload of the best model, then again for the rest; what is not uploaded stays on disk.
FINISH_S = 60.0


def why_offline() -> str | None:
    """Why wandb cannot go online; None if it can."""
    if not _key():
        return "no API key was found"
    server = os.environ.get("WANDB_BASE_URL") or WANDB_HOST
    return None if _answers(server) else f"{urlsplit(server).hostname} does not answer"


def _key() -> bool:
    """Whether wandb would find a key: in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or WANDB_HOST).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(url: str) -> bool:
    """Whether a server answers at all within ANSWER_S; asks in a thread, because no timeout limits a DNS lookup."""
    reply: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            urlopen(url, timeout=ANSWER_S).close()
            reply.put(True)
        except (OSError, ValueError, HTTPException) as error:
            # A certificate rejected here counts as an answer: wandb uses other root certificates.
            refused = isinstance(getattr(error, "reason", error), SSLError)
            reply.put(isinstance(error, HTTPError) or refused)

    threading.Thread(target=ask, daemon=True, name="wandb probe").start()
    try:
        return reply.get(timeout=ANSWER_S)
    except queue.Empty:
        return False


def _mode(run: DashboardRun) -> str:
    """`--wandb-mode` if given, else what the environment says; auto: online if that works."""
    if run.mode != "auto":
        return run.mode
    if os.environ.get("WANDB_DISABLED", "").lower() in TRUE:  # as in Hugging Face's trainers; wandb no longer reads it
        return "disabled"
    mode = (os.environ.get("WANDB_MODE") or "auto").lower()
    return {"dryrun": "offline", "run": "online"}.get(mode, mode)  # wandb's older names


def _unless_set(**ours: Any) -> dict[str, Any]:
    """Our defaults of what wandb also reads from the environment, which wins."""
    return {name: value for name, value in ours.items() if f"WANDB_{name.upper()}" not in os.environ}


def _start(run: DashboardRun) -> WandBTracker:
    import wandb

    folder = run.folder.resolve()  # wandb's service may have another working directory

    def start(mode: str, run_id: str = run.id) -> WandBTracker:
        options = wandb.Settings(
            finish_timeout=FINISH_S,
            finish_timeout_raises=True,
            **_unless_set(init_timeout=START_S, silent=True, console="off"),
        )
        own = _unless_set(dir=str(folder), name=folder.name)
        tracker = WandBTracker(run.project, id=run_id, resume="allow", mode=mode, settings=options, **own)
        tracker.start()
        return tracker

    place = shlex.quote(os.environ.get("WANDB_DIR") or str(run.folder))
    later = f"`wandb sync --id {run.id} {place}/wandb/offline-run-*-{run.id}*` uploads it later"
    mode = _mode(run)
    missing = why_offline() if mode == "auto" else None
    if missing:
        log.info("wandb     offline: %s; %s", missing, later)
        return start("offline")
    try:
        tracker = start("online" if mode == "auto" else mode)
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        log.info("wandb     offline: %s; %s", first_line(error), later)
        return start("offline", run.id + UNREGISTERED)
    log.info("wandb     %s", {"offline": f"offline: {later}", "disabled": mode}.get(mode) or tracker.run.url)
    return tracker


class OnWandb(TrackerDashboard):
    """One wandb run, continued under its id. Evaluations are plotted against epochs, other metrics against steps."""

    package = "wandb"
    tracker: WandBTracker
    staging: str

    @classmethod
    def open(cls, run: DashboardRun) -> "OnWandb":
        for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
            del os.environ[name]  # wandb refuses some that are empty: as if they were not set
        staging = str(run.folder.resolve() / "wandb")  # of files to upload; the default is in the user's home
        os.environ.setdefault(STAGING, staging)
        tracker = _start(run)
        tracker.store_init_configuration(flat(run.config))
        step, epoch = AXES
        tracker.run.define_metric("*", step_metric=step)
        for axis in AXES:
            tracker.run.define_metric(axis, hidden=True)  # no chart of it
        for name in run.eval_specs:
            tracker.run.define_metric(f"quality/{name}/*", step_metric=epoch)
        dashboard = cls(tracker)
        dashboard.staging = staging
        return dashboard

    def log(self, row: Mapping[str, float], step: int) -> None:
        self.tracker.log(dict(row))  # no `step`: wandb drops rows whose step goes back, as after a resume

    def alert(self, title: str, text: str, step: int) -> None:
        self.tracker.run.alert(title, text, level="WARN")

    def show(self, errors: Errors, step: int) -> None:
        import wandb

        counts = [
            [label, predicted, int(errors.confusion[row, column])]
            for row, label in enumerate(errors.classes)
            for column, predicted in enumerate(errors.classes)
        ]
        chart = wandb.plot_table(
            vega_spec_name="wandb/confusion_matrix/v1",
            data_table=wandb.Table(["Actual", "Predicted", "nPredictions"], counts),
            fields={"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        )
        accuracy = wandb.Table(*errors.class_accuracy)
        captions = dict(errors.captioned())
        hardest = wandb.Table(
            errors.hardest.columns,
            [[wandb.Image(str(file), caption=captions[file]), *cells] for file, *cells in errors.hardest.rows],
        )
        row = {"errors/confusion": chart, "errors/class_accuracy": accuracy, "errors/hardest": hardest}
        self.tracker.log({**row, AXES[0]: step})

    def preempting(self) -> None:
        self.tracker.run.mark_preempting()

    def keep_model(self, folder: Path, metadata: Mapping[str, Any]) -> bool:
        import wandb

        run = self.tracker.run
        artifact = wandb.Artifact(f"model-{run.id.removesuffix(UNREGISTERED)}", "model", metadata=dict(metadata))
        for file in (*sorted((folder / "best").iterdir()), folder / "config.yaml", folder / "class_map.json"):
            artifact.add_file(str(file))
        aliases = ["best", f"step-{metadata['step']}"]
        try:
            run.log_artifact(artifact, aliases=aliases)
            if not run.offline and not run.disabled:
                artifact.wait(timeout=FINISH_S)
        except Exception as error:  # a timeout, a network error, or a rejection by the server
            name = f"{run.entity}/{run.project}/{artifact.name.partition(':')[0]}"
            words = ["--type", "model", *(word for alias in aliases for word in ("--alias", alias)), "--name", name]
            later = shlex.join(["wandb", "artifact", "put", *words, str(folder / "best")])
            log.warning("wandb     the best model is not uploaded: %s; `%s` does that later", first_line(error), later)
            return False
        return True

    def finish(self, exit_code: int) -> None:
        run = self.tracker.run
        try:
            run.finish(exit_code)
        except TimeoutError:
            later = shlex.join(["wandb", "sync", "--include-online", run.sync_dir])
            log.warning("wandb     took longer than %g s to upload: `%s` sends the rest later", FINISH_S, later)
        if os.environ.get(STAGING) == self.staging:  # the next run in this process sets its own
            del os.environ[STAGING]
