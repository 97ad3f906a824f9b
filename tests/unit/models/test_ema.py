"""The moving average of the weights, against values worked out by hand."""

import pytest
import torch
from torch import nn

from toolkit.models.ema import Ema, Weights
from toolkit.models.multiview import MultiView, state_tensors
from toolkit.strategies.base import NormPolicy


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))


def move(model: nn.Module, weight: float, variance: float, batches: int) -> None:
    with torch.no_grad():
        model[0].weight.fill_(weight)
        model[1].running_var.fill_(variance)
        model[1].num_batches_tracked.fill_(batches)


def test_the_average_follows_weights_and_statistics_when_it_is_on():
    model = network()
    ema = Ema(model, 0.75)
    move(model, 4.0, 2.0, 1)
    ema.follow()  # the first update is taken over
    move(model, 8.0, 4.0, 2)
    ema.follow()
    state = ema.state()
    assert state["0.weight"].item() == 5.0  # 4 + (8 - 4) / 4
    assert state["1.running_var"].item() == 2.5
    assert state["1.num_batches_tracked"].item() == 2
    assert ema.updates == 2
    assert ema.states()["raw"]["0.weight"].item() == 8.0
    assert model[0].weight.item() == 8.0  # training is not touched


def test_nothing_is_averaged_when_it_is_off():
    model = network()
    weights = Weights(model)
    move(model, 4.0, 2.0, 1)
    weights.follow()
    assert weights.state()["0.weight"].item() == 4.0
    assert (weights.average(), [*weights.states()], weights.updates) == ({}, ["raw"], 1)


def test_a_shared_parameter_moves_once_when_several_scales_have_it():
    model = MultiView(nn.Sequential(nn.BatchNorm2d(2)), NormPolicy("statistics", (16, 24, 32)))
    ema = Ema(model, 0.75)
    for value in (4.0, 8.0):
        with torch.no_grad():
            for tensor in state_tensors(model).values():
                tensor.fill_(value)
        ema.follow()
    averages = {name: tensor for name, tensor in ema.state().items() if tensor.is_floating_point()}
    assert len(averages) == 2 + 3 * 2  # weight and bias once, mean and variance for each of three scales
    assert {value for tensor in averages.values() for value in tensor.tolist()} == {5.0}


def test_the_average_goes_on_when_it_is_restored():
    first, second = Ema(network(), 0.5), Ema(network(), 0.5)
    move(first.model, 4.0, 2.0, 1)
    first.follow()
    second.restore({name: tensor.clone() for name, tensor in first.average().items()}, first.updates)
    for ema in (first, second):
        move(ema.model, 8.0, 4.0, 2)
        ema.follow()
        assert ema.state()["0.weight"].item() == 6.0
    with pytest.raises(RuntimeError, match="does not fit"):
        second.restore({}, 0)
