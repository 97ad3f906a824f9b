"""Dropout and stochastic depth of a model, scaled by a phase's regularization."""

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from toolkit.models.regularization import MOST, DropRates


class Own(nn.Module):
    """Every kind of layer, some without a rate, and one at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_rate, self.dropped = 0.3, 0.3  # the second is nothing that is known
        self.layers = nn.ModuleList([nn.Dropout(0.2), nn.Dropout2d(0.4), DropPath(0.1), StochasticDepth(0.5, "row")])
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.6)
        self.again, self.off = self.layers[0], nn.Dropout(0.0)


def rates(model: Own) -> list[float]:
    first, second, path, depth = model.layers
    return [model.drop_rate, first.p, second.p, path.drop_prob, depth.p, model.attention.dropout]


BUILT = [0.3, 0.2, 0.4, 0.1, 0.5, 0.6]


def test_every_rate_is_scaled_and_comes_back_exactly():
    model = Own()
    found = DropRates.of(model)
    assert len(found.built) == len(BUILT)
    for share in (0.25, 0.0, 1.0, 0.7, 0.7, 1.0):  # scaling again does not scale what was scaled
        found.scale(share)
        assert rates(model) == [share * rate for rate in BUILT]
        assert (model.off.p, model.dropped) == (0.0, 0.3)


def test_rates_stay_below_one_unless_they_were_built_so():
    model = Own()
    model.layers[0].p = 1.0
    found = DropRates.of(model)
    found.scale(100.0)
    assert rates(model) == [MOST, 1.0, *[MOST] * 4]
    found.scale(1.0)
    assert rates(model) == [0.3, 1.0, *BUILT[2:]]


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_mambaout"])
def test_a_model_of_timm_drops_nothing_at_no_regularization_and_differs_from_pass_to_pass_at_all_of_it(arch: str):
    torch.manual_seed(0)
    model = timm.create_model(arch, drop_rate=0.5, drop_path_rate=0.5).train()
    images, found = torch.randn(8, 3, 160, 160), DropRates.of(model)
    with torch.no_grad():
        found.scale(0.0)
        assert torch.equal(model(images), model(images))
        found.scale(1.0)
        assert not torch.allclose(model(images), model(images))  # control


def test_dropout_without_drop_path_is_scaled_too():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", drop_rate=0.5).train()
    images, found = torch.randn(4, 3, 32, 32), DropRates.of(model)
    assert [(type(layer).__name__, name) for layer, name, _ in found.built] == [("ResNet", "drop_rate")]
    with torch.no_grad():
        assert not torch.allclose(model(images), model(images))  # control
        found.scale(0.0)
        assert torch.equal(model(images), model(images))


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.path = nn.Dropout(0.8), DropPath(0.4, scale_by_keep=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.dropout(x), self.path(x)


def test_a_compiled_model_drops_at_the_rate_of_each_phase():
    torch.manual_seed(0)
    model, ones = Drops().train(), torch.ones(4000, 3)
    found = DropRates.of(model)
    model.compile(backend="aot_eager")
    for share in (0.25, 0.5, 0.75, 1.0, 0.25):
        found.scale(share)
        dropped = [float((kept == 0).float().mean()) for kept in model(ones)]
        assert dropped == pytest.approx([0.8 * share, 0.4 * share], abs=0.03)
