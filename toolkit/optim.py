"""The optimizer, by timm's name."""

import timm.optim
import torch
from torch import nn

from toolkit.errors import InputError
from toolkit.settings import Settings, nearest


def create_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer; biases and normalisation are not decayed. Raises InputError on an unknown name."""
    known = timm.optim.list_optimizers()
    if settings.optimizer not in known:
        raise InputError(f"--optimizer {settings.optimizer}: timm has none such{nearest(settings.optimizer, known)}")
    try:
        return timm.optim.create_optimizer_v2(
            model, opt=settings.optimizer, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
    except (AssertionError, ImportError, TypeError) as error:  # needs a package, or arguments that have no flag
        raise InputError(f"--optimizer {settings.optimizer} cannot be used here: {error}") from None
