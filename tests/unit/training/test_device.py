"""What is done to the machine under a run."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from toolkit.training import device


class Network(nn.Sequential):
    def forward(self, *views: Tensor) -> list[Tensor]:
        return [super(Network, self).forward(view) for view in views]


@pytest.fixture
def model() -> Iterator[DistributedDataParallel]:
    """Wrapped as among several processes, though it is alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield DistributedDataParallel(Network(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)))
    distributed.destroy_process_group()


def test_buckets_have_their_last_layout_and_nothing_else_changed_when_they_are_settled(model: DistributedDataParallel):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    device.warm_up_ddp_buckets(model, (8, 16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model(torch.ones(2, 3, 8, 8))
    assert model._has_rebuilt_buckets


def test_buckets_change_their_layout_after_the_first_step_when_they_are_not_settled(model: DistributedDataParallel):
    """The control of the test before."""
    model(torch.ones(2, 3, 8, 8))[0].sum().backward()
    assert not model._has_rebuilt_buckets
    model(torch.ones(2, 3, 8, 8))
    assert model._has_rebuilt_buckets
