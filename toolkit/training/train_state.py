"""What learns: the model, its optimizer and its loss, on the device."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from toolkit.data.images import views
from toolkit.data.images.mixing import mix
from toolkit.data.loading.batches import Batch
from toolkit.models.create import MultiView, create
from toolkit.models.ema import Ema, Weights
from toolkit.models.optimizer import create_optimizer, try_out
from toolkit.strategies.base import Criterion, Strategy
from toolkit.training import device
from toolkit.training.monitor import FiniteWatch, Meter
from toolkit.training.run_plan import Prepared


@dataclass(frozen=True)
class Learner:
    """What learns: all that one training step needs."""

    accelerator: Accelerator
    strategy: Strategy
    model: nn.Module
    optimizer: Any  # AcceleratedOptimizer
    criterion: Criterion
    gradient_clip: float
    classes: int
    mean: Tensor
    std: Tensor
    watch: FiniteWatch
    meter: Meter  # of the open epoch
    weights: Weights

    def receive(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch on the device: uint8 N x 3 x S x S, and N labels, or N x C targets where it is mixed."""
        device = self.accelerator.device
        images, targets = batch.images.to(device, non_blocking=True), batch.targets.to(device, non_blocking=True)
        if batch.mixing is None:
            return images, targets
        return mix(images, targets, batch.mixing.to(device, non_blocking=True), self.classes)

    def views(self, pixels: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """uint8 N x 3 x S x S to one normalised view per size."""
        return views.views(pixels, sizes, self.mean, self.std)

    def gradient_scale(self) -> float:
        """By which float16 gradients are multiplied: it falls where they overflowed and the step was left out."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else scaler.get_scale()

    def figures(self) -> dict[str, float]:
        """What there is to know of float16; nothing in other precisions."""
        return {} if self.accelerator.scaler is None else {"gradient_scale": self.gradient_scale()}


def build_learner(
    accelerator: Accelerator, strategy: Strategy, prepared: Prepared, only_some_scales: bool = False
) -> tuple[Learner, MultiView]:
    """The learner, and a copy of the model for evaluation.

    `only_some_scales`: steps may leave out scales that the strategy itself would not.
    """
    settings, policy, phases = prepared.settings, strategy.norm(), prepared.plan.phases
    # DistributedDataParallel must know if a step can leave private parameters of a scale without a gradient.
    steps = (strategy.step(phase, i) for phase in phases for i in range(phase.steps))
    only_some_scales |= any(set(step.sizes) != set(policy.scales) for step in steps)
    device.fit_to(accelerator, prepared.plan.accumulation, policy.mode == "full" and only_some_scales)
    model = create(settings, prepared.model_plan, policy)
    evaluated = copy.deepcopy(model).to(accelerator.device)
    data_config = resolve_model_data_config(model.model)
    optimizer = create_optimizer(settings, model)
    try_out(settings, accelerator.device)
    if settings.compile:
        model.compile()
    with warnings.catch_warnings():  # torch 2.14 renames the option; older releases and Accelerate know this name only
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        model, optimizer = accelerator.prepare(model, optimizer)
    device.settle_buckets(model, phases[0].sizes)
    unwrapped = accelerator.unwrap_model(model)
    learner = Learner(
        accelerator=accelerator,
        strategy=strategy,
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing),
        gradient_clip=settings.gradient_clip or float("inf"),
        classes=len(prepared.splits.classes),
        mean=torch.tensor(data_config["mean"], device=accelerator.device),
        std=torch.tensor(data_config["std"], device=accelerator.device),
        watch=FiniteWatch(accelerator.device, gradients=accelerator.scaler is None),
        meter=Meter(),
        weights=Ema(unwrapped, settings.ema_decay) if settings.ema_decay else Weights(unwrapped),
    )
    return learner, evaluated
