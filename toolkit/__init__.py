"""Train image classifiers at one or several scales, on any hardware, with one loop.

Names are looked up when first used, so that `import toolkit` and the recipes' `--help` stay free of torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.config.settings import Settings as Settings
    from toolkit.config.tables import register as register
    from toolkit.data.sources.base import Source as Source
    from toolkit.data.sources.base import SourceOptions as SourceOptions
    from toolkit.data.sources.index import Found as Found
    from toolkit.data.sources.index import Index as Index
    from toolkit.models.classification import Classification as Classification
    from toolkit.models.multilabel import MultiLabel as MultiLabel
    from toolkit.runs.dashboards.base import Dashboard as Dashboard
    from toolkit.runs.dashboards.base import DashboardRun as DashboardRun
    from toolkit.strategies import Finish as Finish
    from toolkit.strategies import HeadFirst as HeadFirst
    from toolkit.strategies import Progressive as Progressive
    from toolkit.strategies import ProgressiveCompute as ProgressiveCompute
    from toolkit.strategies import ProgressiveSimultaneous as ProgressiveSimultaneous
    from toolkit.strategies import Sampled as Sampled
    from toolkit.strategies import Sandwich as Sandwich
    from toolkit.strategies import Simultaneous as Simultaneous
    from toolkit.strategies import SingleScale as SingleScale
    from toolkit.strategies.base import BoundTask as BoundTask
    from toolkit.strategies.base import Metric as Metric
    from toolkit.strategies.base import Strategy as Strategy
    from toolkit.strategies.base import Task as Task
    from toolkit.strategies.schedule import Schedule as Schedule
    from toolkit.system.errors import InputError as InputError
    from toolkit.system.errors import NonFiniteError as NonFiniteError
    from toolkit.tools.benchmark import benchmark as benchmark
    from toolkit.tools.compare import compare as compare
    from toolkit.tools.evaluate import evaluate as evaluate
    from toolkit.tools.export import export as export
    from toolkit.tools.finetuning import finetuning as finetuning
    from toolkit.tools.planner import plan as plan
    from toolkit.tools.predict import predict as predict
    from toolkit.tools.predictor import load as load
    from toolkit.tools.rate_sweep import find_rate as find_rate
    from toolkit.tools.report import report as report
    from toolkit.tools.scan import scan as scan
    from toolkit.training.loop import train as train

_HOMES = {
    "train": "toolkit.training.loop",
    "load": "toolkit.tools.predictor",
    "evaluate": "toolkit.tools.evaluate",
    "compare": "toolkit.tools.compare",
    "predict": "toolkit.tools.predict",
    "export": "toolkit.tools.export",
    "scan": "toolkit.tools.scan",
    "report": "toolkit.tools.report",
    "benchmark": "toolkit.tools.benchmark",
    "plan": "toolkit.tools.planner",
    "finetuning": "toolkit.tools.finetuning",
    "find_rate": "toolkit.tools.rate_sweep",
    "Settings": "toolkit.config.settings",
    "register": "toolkit.config.tables",
    "Strategy": "toolkit.strategies.base",
    "Schedule": "toolkit.strategies.schedule",
    "Task": "toolkit.strategies.base",
    "BoundTask": "toolkit.strategies.base",
    "Metric": "toolkit.strategies.base",
    "Classification": "toolkit.models.classification",
    "MultiLabel": "toolkit.models.multilabel",
    "SingleScale": "toolkit.strategies",
    "Progressive": "toolkit.strategies",
    "ProgressiveCompute": "toolkit.strategies",
    "Simultaneous": "toolkit.strategies",
    "ProgressiveSimultaneous": "toolkit.strategies",
    "Sampled": "toolkit.strategies",
    "Sandwich": "toolkit.strategies",
    "Finish": "toolkit.strategies",
    "HeadFirst": "toolkit.strategies",
    "Source": "toolkit.data.sources.base",
    "SourceOptions": "toolkit.data.sources.base",
    "Found": "toolkit.data.sources.index",
    "Index": "toolkit.data.sources.index",
    "Dashboard": "toolkit.runs.dashboards.base",
    "DashboardRun": "toolkit.runs.dashboards.base",
    "InputError": "toolkit.system.errors",
    "NonFiniteError": "toolkit.system.errors",
}


def __dir__() -> list[str]:
    return sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
