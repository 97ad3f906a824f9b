"""The commands of the page: to train the same again, and to write the page again."""

import shlex
from collections.abc import Mapping
from typing import Any

from toolkit.config.data_roots import PYTHON_DATA
from toolkit.config.tables import TABLES
from toolkit.runs.report.records import ReportData
from toolkit.system import console

SEAMS = ("strategy", "task", "scheduler", "log_with")  # settings that may name a class of the user's own
CODE = ("model_from", "transform")  # settings that name a function, whose flags allow importing its module


def commands(records: ReportData, errors_on: str) -> list[tuple[str, str]]:
    """(purpose, command) pairs: to repeat the run and to write this page again."""
    run, summary = console.shown(str(records.directory)), records.summary
    processes, device = summary.get("processes", 1), summary.get("device")
    kind = {"cpu": "cpu", "cuda": "gpu"}.get(str(device))
    launch = ["toolkit"]
    if processes > 1:
        config = ["--config_file", f"accelerate_configs/multi_{kind}.yaml"] if kind else []
        launch = ["accelerate", "launch", "--quiet", *config, "--num_processes", str(processes), "-m", "toolkit"]
    recipe = "single" if records.config.get("strategy") == "single" else "multi"
    again = [*launch, "train", recipe, "--config", f"{run}/config.yaml", "--output-dir", f"{run}-again"]
    modules, own = _own_modules(records.config), [name for name in CODE if records.config.get(name)]
    again += [word for name in own for word in (f"--{name.replace('_', '-')}", str(records.config[name]))]
    again += ["--import", *modules] if modules else []
    chosen = [] if errors_on == "val" else ["--errors-on", errors_on]
    return [
        *([("Train the same again, elsewhere", shlex.join(again))] if modules is not None else []),
        ("Write this page again", shlex.join(["toolkit", "report", run, *chosen])),
    ]


def _own_modules(config: Mapping[str, Any]) -> list[str] | None:
    """The modules of the user's own that a recipe must import to train a run again; None if no recipe can.

    Recipes lack what only Python can pass: data sets, objects, functions without a name, what a script defines.
    """
    seams = [str(config.get(name)) for name in SEAMS if ":" in str(config.get(name))]
    named = [text.partition(":") for text in (*seams, *(str(config[name]) for name in CODE if config.get(name)))]
    unnamed = any(not attribute.isidentifier() or module == "__main__" for module, _, attribute in named)
    unknown = str(config.get("strategy")) not in (*TABLES["strategy"], *seams)
    if unnamed or unknown or str(config.get("data_root")).startswith(PYTHON_DATA):
        return None
    return list(dict.fromkeys(text.partition(":")[0] for text in seams))
