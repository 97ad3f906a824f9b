"""Model, optimizer, loss and running training state, on the device."""

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from toolkit.data.images import views
from toolkit.data.images.mixing import mix
from toolkit.data.loading.batches import Batch, empty_batch
from toolkit.models.ema import Weights, make_weights
from toolkit.models.layers import trainable_names
from toolkit.models.learning import fixed_norms, freeze, learnable_names, lr_scales
from toolkit.models.multiview import MultiView, inherited_names
from toolkit.models.optimizer import check_optimizer, create_optimizer
from toolkit.models.regularization import DropRates
from toolkit.runs.progress import Progress
from toolkit.strategies.base import BoundTask, Phase, Strategy
from toolkit.training import device
from toolkit.training.compilation import Graphs
from toolkit.training.monitor import NonFiniteMonitor, RunningMeans
from toolkit.training.run_plan import RunPlan


@dataclass(frozen=True)
class TrainState:
    """Everything that one training step reads and changes."""

    accelerator: Accelerator
    strategy: Strategy
    model: nn.Module
    optimizer: Any  # AcceleratedOptimizer
    tasks: Mapping[float, BoundTask]  # by the regularization of a phase
    drop_rates: DropRates
    gradient_clip: float
    learnable: frozenset[str]  # parameters that any phase may train
    fixed_norms: tuple[nn.Module, ...]  # normalization that keeps its statistics
    mean: Tensor
    std: Tensor
    non_finite: NonFiniteMonitor
    running_means: RunningMeans  # of the open epoch
    weights: Weights
    graphs: Graphs
    progress: Progress = field(default_factory=Progress)

    def begin(self, phase: Phase, accumulation: int) -> None:
        """Switch to a phase: training mode, micro-batches per step, dropout, and trainable parameters."""
        self.model.train()
        for norm in self.fixed_norms:
            norm.eval()
        self.drop_rates.scale(phase.regularization)
        self.accelerator.gradient_accumulation_steps = accumulation
        self.accelerator.step = 0  # Accelerate counts micro-batches from here
        network: Any = self.weights.model
        chosen = trainable_names(network, phase.trainable) & self.learnable
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in chosen)

    def compile(self, sizes: tuple[int, ...], images: int) -> None:
        """Compile the model for steps at `sizes`, px, of `images` per forward pass, in the mode that `begin` has set.

        Changes no state. Does nothing without `--compile`, and if that graph exists.
        """
        if self.graphs.compiles:
            pixels = empty_batch(images, sizes[-1]).zero_().to(self.accelerator.device)
            self.graphs.build(self.model, self.views(pixels, sizes), self.drop_rates.now())

    def inherit_norms(self, sizes: Sequence[int], before: Collection[int]) -> None:
        """Start the normalization of `sizes`, px, that no earlier phase trained as that of the nearest trained scale.

        `before`: the sizes of earlier phases. Normalization that is fixed stays as it was loaded.
        """
        if self.fixed_norms:
            return
        network: Any = self.weights.model
        for target, source in inherited_names(network, sizes, before).items():
            self.weights.copy(source, target)

    def receive(self, batch: Batch, task: BoundTask) -> tuple[Tensor, Tensor]:
        """Move a batch to the device: uint8 N x 3 x S x S images, and the targets of `task`."""
        device = self.accelerator.device
        images, labels = batch.images.to(device, non_blocking=True), batch.targets.to(device, non_blocking=True)
        if batch.mixing is None:
            return images, task.targets(labels)
        return mix(images, task.mixable(labels), batch.mixing.to(device, non_blocking=True))

    def views(self, pixels: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Convert uint8 N x 3 x S x S images to one normalized view per size."""
        return views.views(pixels, sizes, self.mean, self.std)

    def gradient_scale(self) -> float:
        """The factor on float16 gradients, 1 in other precisions; it falls after an overflow, whose step is skipped."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else scaler.get_scale()

    def metrics(self) -> dict[str, float]:
        """The gradient scale in float16; empty in other precisions."""
        return {} if self.accelerator.scaler is None else {"gradient_scale": self.gradient_scale()}


def build_train_state(
    accelerator: Accelerator, run_plan: RunPlan, only_some_scales: bool = False
) -> tuple[TrainState, MultiView]:
    """Build the training state, and a copy of the model for evaluation.

    `only_some_scales`: the caller may run steps that skip scales which the strategy itself always trains.
    """
    settings, strategy, phases = run_plan.settings, run_plan.parts.strategy, run_plan.steps.phases
    policy = strategy.norm()
    # DistributedDataParallel must know whether a step can leave a scale's own parameters without a gradient.
    steps = (strategy.step(phase, i) for phase in phases for i in range(phase.steps))
    only_some_scales |= any(set(step.sizes) != set(policy.scales) for step in steps)
    partly = run_plan.model.unused or any(phase.trainable for phase in phases)
    device.configure(accelerator, partly or (policy.mode == "full" and only_some_scales))
    model = run_plan.parts.model.create(settings, run_plan.model, policy)
    freeze(settings, model)
    learnable = learnable_names(model)
    evaluated = copy.deepcopy(model).to(accelerator.device)
    optimizer = create_optimizer(settings, model, lr_scales(settings, model))
    check_optimizer(settings, accelerator.device)
    graphs = Graphs(settings.compile)
    graphs.compile(model)
    # In channels_last order a 1 x 1 kernel has two strides that mean the same; torch takes one of them for slow.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    with warnings.catch_warnings():  # torch 2.14 renames the option; older releases and Accelerate have only this name
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        model, optimizer = accelerator.prepare(model, optimizer)
    device.warm_up_ddp_buckets(model, phases[0].sizes)
    unwrapped = accelerator.unwrap_model(model)
    state = TrainState(
        accelerator=accelerator,
        strategy=strategy,
        model=model,
        optimizer=optimizer,
        tasks=run_plan.bound_tasks(accelerator.device),
        drop_rates=DropRates.of(unwrapped),
        learnable=learnable,
        fixed_norms=fixed_norms(settings, unwrapped),
        gradient_clip=settings.gradient_clip or float("inf"),
        mean=torch.tensor(run_plan.model.mean, device=accelerator.device),
        std=torch.tensor(run_plan.model.std, device=accelerator.device),
        non_finite=NonFiniteMonitor(accelerator.device, gradients=accelerator.scaler is None),
        running_means=RunningMeans(accelerator.device),
        weights=make_weights(unwrapped, settings),
        graphs=graphs,
    )
    state.begin(phases[0], run_plan.steps.accumulation(phases[0]))
    return state, evaluated
