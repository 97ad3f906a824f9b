"""At least one example of every strategy, and its variants; a new one gets a line here, and all promises run on it.

The images of the tests have 32 px; the sizes are small enough for a step to cost milliseconds.
"""

import numpy as np
import torch
from phased import HeadFirst

from toolkit import Strategy
from toolkit.config.tables import TABLES
from toolkit.models.classification import Classification
from toolkit.strategies import Progressive, Simultaneous, SingleScale

EXAMPLES: dict[str, Strategy] = {
    "single": SingleScale(24),
    "single-panel": SingleScale(16, eval_scales=(16, 24)),
    "progressive": Progressive((16, 24)),
    "progressive-epochs": Progressive((16, 24, 32), scale_epochs=(1, 2, 1)),
    "progressive-ramp": Progressive((16, 32), ramp=True),
    "progressive-full": Progressive((16, 24), scale_epochs=(3,), norm_per_scale="full"),
    "progressive-statistics": Progressive((16, 24), norm_per_scale="statistics"),
    "simultaneous": Simultaneous((16, 24, 32), consistency_weight=1.0),
    "simultaneous-mse-statistics": Simultaneous((16, 24), 0.5, "mse", "statistics", eval_scales=(16, 20, 24)),
    "simultaneous-js-off": Simultaneous((16, 24, 32), consistency_weight=1.0, consistency="js", norm_per_scale="off"),
    "head-first": HeadFirst(16, 24),
    "simultaneous-alone": Simultaneous((16, 24)),
}
TASK = Classification().bind(np.ones(10), torch.device("cpu"))
EPOCHS = 4  # every example can spend these


def without_example() -> set[str]:
    """Names of strategies that no example stands for."""
    return set(TABLES["strategy"]) - {type(strategy).name for strategy in EXAMPLES.values()}
