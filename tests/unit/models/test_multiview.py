"""Normalization per scale when a phase trains a scale first, and which parameters a phase trains."""

import pytest
import timm
import torch
from torch import nn

from toolkit.models.ema import Ema, Weights
from toolkit.models.layers import trainable_names
from toolkit.models.multiview import MultiView, inherited_names
from toolkit.strategies.base import NormPolicy
from toolkit.system.errors import InputError

SCALES = (8, 16, 64)


def model(mode: str = "full") -> MultiView:
    """Every tensor of every scale has its own value."""
    made = MultiView(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), NormPolicy(mode, SCALES))  # type: ignore[arg-type]
    with torch.no_grad():
        for i, tensor in enumerate([*made.parameters(), *made.buffers()]):
            tensor.fill_(i)
    return made


def norms(made: MultiView, scale: int) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in made.scale_norms[0].norms[str(scale)].state_dict().items()}


@pytest.mark.parametrize("kind", [Weights, Ema])
def test_a_scale_that_appears_starts_as_the_nearest_trained_one(kind: type):
    made = model()
    weights = Weights(made) if kind is Weights else Ema(made, 0.9)
    before = {scale: norms(made, scale) for scale in SCALES}
    for target, source in inherited_names(made, (64,), {8, 16}).items():
        weights.copy(source, target)
    assert all(torch.equal(tensor, before[16][name]) for name, tensor in norms(made, 64).items())
    for scale in (8, 16):
        assert all(torch.equal(tensor, before[scale][name]) for name, tensor in norms(made, scale).items())
    averaged = weights.state()
    assert torch.equal(averaged["model.0.norms.64.running_mean"], before[16]["running_mean"])


def test_only_statistics_are_inherited_when_scales_share_the_rest():
    assert {name.rsplit(".", 1)[1] for name in inherited_names(model("statistics"), (64,), {8})} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


@pytest.mark.parametrize(
    ("mode", "sizes", "before"), [("full", (8, 16), {8, 16}), ("full", (8,), set()), ("off", (64,), {8})]
)
def test_nothing_is_inherited_when_no_scale_is_new_or_none_was_trained(mode: str, sizes: tuple[int, ...], before: set):
    assert inherited_names(model(mode), sizes, before) == {}


NAMES = ("weight", "bias")


def test_the_parts_that_learn_are_the_head_or_named_by_their_start():
    made = MultiView(timm.create_model("test_resnet", num_classes=3), NormPolicy("off", (32,)))
    every = {name for name, _ in made.named_parameters()}
    assert trainable_names(made, ()) == every
    assert trainable_names(made, ("head",)) == {"model.fc.weight", "model.fc.bias"}
    assert trainable_names(made, ("head", "layer4")) == {
        name for name in every if name.startswith(("model.fc.", "model.layer4."))
    }


@pytest.mark.parametrize("part", ["layer9", "lay", "head"])
def test_a_part_that_the_model_lacks_is_refused(part: str):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(InputError, match=f"Phase.trainable '{part}'.*it has 1"):
        trainable_names(MultiView(network, NormPolicy("off", (32,))), (part,))


@pytest.mark.parametrize(
    ("arch", "mode", "expected"),
    [
        ("resnet18", "off", {"model.layer4.1.bn2.weight", "model.layer4.1.bn2.bias"}),
        ("test_resnet", "off", {"model.layer4.0.bn2.weight", "model.layer4.0.bn2.bias"}),  # not the shortcut's
        ("resnet18", "full", {f"model.layer4.1.bn2.norms.{size}.{name}" for size in (16, 32) for name in NAMES}),
        ("test_vit", "off", {"model.norm.weight", "model.norm.bias"}),
        ("test_convnext", "off", {"model.head.norm.weight", "model.head.norm.bias"}),
    ],
)
def test_the_last_normalization_is_a_part_that_learns(arch: str, mode: str, expected: set[str]):
    policy = NormPolicy(mode, (16, 32) if mode == "full" else (32,))
    made = MultiView(timm.create_model(arch, num_classes=3), policy)
    assert trainable_names(made, ("last_norm",)) == expected
    assert trainable_names(made, ("head", "last_norm")) >= expected | trainable_names(made, ("head",))


def test_a_network_without_normalization_has_no_last_one():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    made = MultiView(network, NormPolicy("off", (32,)))
    assert trainable_names(made, ("last_norm",)) == set()
    assert trainable_names(made, ("1", "last_norm")) == {"model.1.weight", "model.1.bias"}
