"""Compile the model with torch.compile: one static graph per tuple of sizes, built before the steps that use it."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


@contextlib.contextmanager
def restoring_state(model: nn.Module) -> Iterator[None]:
    """Restore the buffers afterwards, and clear the gradients."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        model.zero_grad()
        for buffer, before in buffers:
            buffer.copy_(before)


@dataclass
class Graphs:
    """The graphs of a compiled model; without `--compile`, none are built.

    torch specializes a graph on the shapes of its inputs, on which parameters learn, and on rates of dropout.
    """

    compiles: bool
    built: set[tuple[tuple[torch.Size, ...], frozenset[str], tuple[float, ...]]] = field(default_factory=set)

    def compile(self, model: nn.Module) -> None:
        """Compile at the first call with each shape. By default torch makes a second size symbolic, which is slower."""
        if self.compiles:
            model.compile(dynamic=False)

    def build(self, model: nn.Module, views: Sequence[Tensor], drop_rates: tuple[float, ...] = ()) -> None:
        """Build the graph for such views, unless it exists, by a step that changes no state; every rank must call it.

        `model`: in the mode, with the parameters that learn and the `drop_rates` of the steps to come.
        """
        learn = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        graph = tuple(view.shape for view in views), learn, drop_rates
        if graph in self.built:
            return
        started = time.perf_counter()
        # Every graph is wanted. Past torch's limits, which are per process, a size would silently stay uncompiled.
        unlimited = {"recompile_limit": sys.maxsize, "accumulated_recompile_limit": sys.maxsize}
        with restoring_state(model), torch._dynamo.config.patch(unlimited):
            torch.stack(model(*views)).sum().backward()
        self.built.add(graph)
        sizes = "+".join(str(view.shape[-1]) for view in views)
        log.info("compile   %s px, %d images: %.1f s", sizes, len(views[0]), time.perf_counter() - started)
