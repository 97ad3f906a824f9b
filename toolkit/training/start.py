"""Load the weights that a new run starts from; a resumed run has its own."""

from collections.abc import Callable
from typing import Any

from toolkit.models.collectives import overwrite_from_main
from toolkit.models.cost_matrix import read_costs
from toolkit.models.initial_weights import InitialWeights, fit
from toolkit.models.multiview import state_tensors
from toolkit.runs import weight_files
from toolkit.training.run import Run
from toolkit.training.run_plan import RunPlan


def initial_weights(run_plan: RunPlan) -> InitialWeights:
    """The weights of --weights or --pretrained, fitted to the run's model; empty for random ones.

    Raises InputError, also if the file of --cost-matrix is gone, which a new run needs too.
    """
    settings, source = run_plan.settings, run_plan.parts.model
    if settings.cost_matrix and run_plan.costs is None:
        read_costs(settings.cost_matrix, run_plan.splits.classes)
    if settings.weights:
        weights = weight_files.read(settings.weights)
    elif settings.pretrained:
        weights = source.pretrained(settings, run_plan.model)
    else:
        return InitialWeights({}, ())
    strategy, network = run_plan.parts.strategy, source.network(settings, run_plan.model)
    return fit(weights, network, source.name, run_plan.splits.classes, strategy.norm())


def load_initial(run: Run, initial: Callable[[], InitialWeights]) -> None:
    """Set the model's tensors on all ranks; only rank 0 asks for `initial`."""
    if not (run.settings.weights or run.settings.pretrained):
        return
    network: Any = run.state.weights.model
    if run.accelerator.is_main_process:
        initial().copy_to(network)
    overwrite_from_main(state_tensors(network).values())
    run.state.weights.restore(state_tensors(network), updates=0)
