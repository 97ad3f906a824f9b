"""A model and a dashboard of one's own that take long, each on one rank: the others have to wait."""

import os
import time
from collections.abc import Mapping

import torch
from torch import nn

from toolkit import Dashboard, DashboardRun

SECONDS = 12.0


def slow_on(rank: int) -> None:
    if os.environ.get("RANK") == str(rank):
        time.sleep(SECONDS)


def make(num_classes: int) -> nn.Module:
    """Rank 1 builds it slowly, as one that downloads would."""
    if torch.get_default_device().type != "meta":
        slow_on(1)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))


class Slow(Dashboard):
    """Its first row takes rank 0 long, as an upload would."""

    def __init__(self) -> None:
        self.rows = 0

    @classmethod
    def open(cls, run: DashboardRun) -> "Slow":
        return cls()

    def log(self, row: Mapping[str, float], step: int) -> None:
        self.rows += 1
        if self.rows == 1:
            slow_on(0)
