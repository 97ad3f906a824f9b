"""Train image classifiers at one or several scales, on any hardware, with one loop.

Names are looked up when first used, so that `import toolkit` and the recipes' `--help` stay free of torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.contract import Strategy as Strategy
    from toolkit.errors import InputError as InputError
    from toolkit.errors import NonFiniteError as NonFiniteError
    from toolkit.loop import train as train
    from toolkit.settings import Settings as Settings
    from toolkit.strategies import Progressive as Progressive
    from toolkit.strategies import Simultaneous as Simultaneous
    from toolkit.strategies import SingleScale as SingleScale

_HOMES = {
    "train": "toolkit.loop",
    "Settings": "toolkit.settings",
    "Strategy": "toolkit.contract",
    "SingleScale": "toolkit.strategies",
    "Progressive": "toolkit.strategies",
    "Simultaneous": "toolkit.strategies",
    "InputError": "toolkit.errors",
    "NonFiniteError": "toolkit.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
