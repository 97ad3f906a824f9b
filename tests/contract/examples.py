"""At least one example of every strategy, and its variants; a new one gets a line here, and all promises run on it.

The images of the tests have 32 px; the sizes are small enough for a step to cost milliseconds.
"""

import numpy as np
import torch
from phased import Phased

from toolkit import Strategy
from toolkit.config.tables import TABLES
from toolkit.models.classification import Classification
from toolkit.strategies import (
    Finish,
    HeadFirst,
    Progressive,
    ProgressiveCompute,
    ProgressiveSimultaneous,
    Sampled,
    Sandwich,
    Simultaneous,
    SingleScale,
)

EXAMPLES: dict[str, Strategy] = {
    "single": SingleScale(24),
    "single-panel": SingleScale(16, eval_scales=(16, 24)),
    "progressive": Progressive((16, 24)),
    "progressive-epochs": Progressive((16, 24, 32), scale_epochs=(1, 2, 1)),
    "progressive-ramp": Progressive((16, 32), ramp=True),
    "progressive-regularized": Progressive((16, 24, 32), scale_epochs=(2, 1, 1), regularization_from=0.25),
    "progressive-full": Progressive((16, 24), scale_epochs=(3,), norm_per_scale="full"),
    "progressive-statistics": Progressive((16, 24), norm_per_scale="statistics"),
    "simultaneous": Simultaneous((16, 24, 32), consistency_weight=1.0),
    "simultaneous-mse-statistics": Simultaneous((16, 24), 0.5, "mse", "statistics", eval_scales=(16, 20, 24)),
    "simultaneous-js-off": Simultaneous((16, 24, 32), consistency_weight=1.0, consistency="js", norm_per_scale="off"),
    "phased": Phased(16, 24),
    "simultaneous-alone": Simultaneous((16, 24)),
    "simultaneous-taught": Simultaneous((16, 24, 32), consistency_share=0.5, consistency_gate=True),
    "simultaneous-ensemble": Simultaneous(
        (16, 24, 32),
        consistency="dkd",
        consistency_share=0.5,
        consistency_ramp=False,
        consistency_teacher="mean",
        consistency_temperature=2.0,
    ),
    "progressive-grown": Progressive((16, 24), grow_batch="sqrt"),
    "progressive-compute": ProgressiveCompute((16, 24), regularization_from=0.5),
    "progressive-simultaneous": ProgressiveSimultaneous((16, 24, 32), consistency_share=0.5),
    "sampled": Sampled((16, 24, 32)),
    "sandwich": Sandwich((12, 16, 24, 32)),
    "finish-single": Finish(SingleScale(16), 24),
    "finish-simultaneous": Finish(Simultaneous((12, 16), consistency_share=0.25), 24, finish_epochs=2),
    "head-first-single": HeadFirst(SingleScale(24), 2),
    "head-first-progressive": HeadFirst(Progressive((16, 24), norm_per_scale="full"), 1),
    "head-first-compute": HeadFirst(ProgressiveCompute((16, 24), regularization_from=0.5), 1),
    "head-first-simultaneous": HeadFirst(Simultaneous((12, 16), consistency_share=0.25), 2),
    "head-first-together": HeadFirst(ProgressiveSimultaneous((12, 16), consistency_share=0.5), 1),
    "head-first-sampled": HeadFirst(Sampled((16, 24)), 2),
    "head-first-sandwich": HeadFirst(Sandwich((12, 16, 24)), 1),
    "head-first-phased": HeadFirst(Phased(16, 24), 1),
    "head-first-finish": Finish(HeadFirst(Progressive((12, 16)), 1), 24),
}
TASK = Classification().bind(np.ones(10), torch.device("cpu"))
EPOCHS = 4  # every example can spend these


def without_example() -> set[str]:
    """Names of strategies that no example stands for."""
    return set(TABLES["strategy"]) - {type(strategy).name for strategy in EXAMPLES.values()}
