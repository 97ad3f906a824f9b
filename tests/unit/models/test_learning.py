"""What the settings let learn, and each layer's factor on the learning rate."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn

from toolkit import InputError, Settings
from toolkit.config.choices import NormMode
from toolkit.models.layers import classifier_names, plain_names
from toolkit.models.learning import check_learning, fixed_norms, freeze, learnable_names, lr_scales
from toolkit.models.multiview import BATCH_NORMS, MultiView
from toolkit.models.optimizer import create_optimizer
from toolkit.strategies import HeadFirst, SingleScale
from toolkit.strategies.base import Budget, NormPolicy

ARCHES = ("test_resnet", "test_vit", "test_efficientnet", "test_convnext", "deit_tiny_distilled_patch16_224")


def made(network: Callable[[], nn.Module] | str, mode: NormMode = "off") -> MultiView:
    with torch.device("meta"):
        model = timm.create_model(network, num_classes=7) if isinstance(network, str) else network()
        return MultiView(model, NormPolicy(mode, (16, 32)))


def frozen(model: MultiView, **settings: Any) -> set[str]:
    """Names, in the network, of the parameters that learn."""
    freeze(Settings(**settings), model)
    return {plain_names(model)[name] for name in learnable_names(model)}


class Own(nn.Module):
    """A network without what timm's have."""

    def __init__(self, head: str = "head") -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.add_module(head, nn.Linear(4, 7))


@pytest.mark.parametrize("mode", ["off", "statistics", "full"])
@pytest.mark.parametrize("arch", ARCHES)
def test_a_layer_has_the_factor_that_timm_gives_it_whatever_each_scale_owns(arch: str, mode: NormMode):
    plain = timm.create_model(arch, num_classes=7)
    names = {parameter: name for name, parameter in plain.named_parameters()}
    groups = param_groups_layer_decay(plain, layer_decay=0.7)
    expected = {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}
    model = made(arch, mode)
    found = lr_scales(Settings(layer_decay=0.7), model)
    assert len({*expected.values()}) > 4
    assert found.keys() == dict(model.named_parameters()).keys()
    assert {plain_names(model)[name]: scale for name, scale in found.items()} == expected


def test_copies_of_a_normalization_have_the_factor_of_their_layer():
    found = lr_scales(Settings(layer_decay=0.5), made("test_resnet", "full"))
    copies = {scale for name, scale in found.items() if name.startswith("model.layer1.0.bn1.norms.")}
    assert copies == {found["model.layer1.0.conv1.weight"]}
    assert copies != {found["model.fc.weight"]}  # control


def test_the_backbone_has_a_factor_of_its_own_that_multiplies_that_of_a_layer():
    model = made("test_resnet")
    alone = lr_scales(Settings(backbone_lr_scale=0.1), model)
    assert {name for name, scale in alone.items() if scale == 1} == {"model.fc.weight", "model.fc.bias"}
    assert {*alone.values()} == {0.1, 1.0}
    decayed, both = (lr_scales(Settings(layer_decay=0.5, backbone_lr_scale=scale), model) for scale in (1, 0.1))
    assert both["model.conv1.0.weight"] == pytest.approx(0.1 * decayed["model.conv1.0.weight"])
    assert both["model.fc.weight"] == decayed["model.fc.weight"] == 1


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_groups_learn_at_the_factors_of_their_parameters_and_decay_as_before(name: str):
    model = made("test_resnet", "full")
    scales = lr_scales(Settings(layer_decay=0.7), model)
    settings = Settings(optimizer=name, weight_decay=0.125, learning_rate=0.5)
    plain, scaled = create_optimizer(settings, model), create_optimizer(settings, model, scales)

    def of_each(optimizer: torch.optim.Optimizer, key: str) -> dict[nn.Parameter, Any]:
        return {p: group.get(key) for group in optimizer.param_groups for p in group["params"]}

    assert of_each(scaled, "weight_decay") == of_each(plain, "weight_decay")
    assert of_each(scaled, "lr_scale") == {parameter: scales[name] for name, parameter in model.named_parameters()}
    assert sum(len(group["params"]) for group in scaled.param_groups) == len(scales)  # each once


def test_the_optimizer_is_that_of_before_when_no_factor_is_given():
    model = made("test_resnet")
    settings = Settings(weight_decay=0.1, learning_rate=0.5)
    found = create_optimizer(settings, model, lr_scales(settings, model))
    expected = create_optimizer_v2(model, opt="adamw", lr=0.5, weight_decay=0.1)
    assert found.state_dict() == expected.state_dict()


def test_a_network_of_ones_own_is_refused_layer_decay_and_takes_a_factor_for_its_backbone():
    with pytest.raises(InputError, match=r"^--layer-decay 0.5: resnet18 has no group_matcher.*--backbone-lr-scale$"):
        lr_scales(Settings(layer_decay=0.5, data_root="x"), made(Own))
    found = lr_scales(Settings(backbone_lr_scale=0.5), made(lambda: Own("classifier")))
    assert {name for name, scale in found.items() if scale == 1} == {"model.classifier.weight", "model.classifier.bias"}
    with pytest.raises(InputError, match=r"^--backbone-lr-scale 0.5: the classifier of .* is not known; the head is"):
        lr_scales(Settings(backbone_lr_scale=0.5), made(lambda: Own("last")))


def test_a_classifier_of_two_layers_is_both():
    found = {name.split(".")[1] for name in classifier_names(made("deit_tiny_distilled_patch16_224"))}
    assert found == {"head", "head_dist"}


@pytest.mark.parametrize("mode", ["off", "full"])
def test_only_the_classifier_learns_when_the_rest_is_frozen(mode: NormMode):
    assert frozen(made("test_resnet", mode), freeze=True) == {"fc.weight", "fc.bias"}
    with pytest.raises(InputError, match=r"--freeze: the classifier of .* is not known"):
        frozen(made(lambda: Own("last")), freeze=True)


@pytest.mark.parametrize(
    ("arch", "stage", "parts"),
    [
        ("test_resnet", "layer4", {"layer4", "fc"}),
        ("test_resnet", "maxpool", {"layer1", "layer2", "layer3", "layer4", "fc"}),  # it has no parameters of its own
        ("test_resnet", "fc", {"fc"}),
        ("test_vit", "norm", {"norm", "head"}),
        ("test_efficientnet", "conv_head", {"conv_head", "bn2", "classifier"}),
    ],
)
@pytest.mark.parametrize("mode", ["off", "statistics", "full"])
def test_what_comes_from_a_stage_on_learns(arch: str, stage: str, parts: set[str], mode: NormMode):
    model = made(arch, mode)
    every = {name for name in plain_names(model).values() if name.partition(".")[0] in parts}
    assert frozen(model, unfreeze_from=stage, arch=arch) == every


def test_a_stage_may_be_one_of_timms_features_or_a_member_of_a_list():
    blocks = {name.rpartition(".")[0] for name in frozen(made("test_vit"), unfreeze_from="blocks.4")}
    assert {".".join(name.split(".")[:2]) for name in blocks if name.startswith("blocks")} == {"blocks.4", "blocks.5"}
    assert "head" in blocks


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ("layr4", "--unfreeze-from layr4: test_resnet has no such stage; did you mean layer4?"),
        ("layer4.0.conv9", "--unfreeze-from layer4.0.conv9: test_resnet has no such stage; did you mean layer4.0?"),
        ("xyz", "has no such stage; it has conv1, bn1, act1, maxpool, layer1, layer2, layer3, layer4, global_pool, fc"),
        ("conv1", "--unfreeze-from conv1 would be ignored: test_resnet begins with it, so all learns"),
    ],
)
def test_a_stage_is_refused_when_it_is_not_there_or_freezes_nothing(stage: str, told: str):
    with pytest.raises(InputError) as caught:
        frozen(made("test_resnet"), unfreeze_from=stage, arch="test_resnet")
    assert told in str(caught.value)


@pytest.mark.parametrize("mode", ["off", "statistics", "full"])
def test_batch_norm_is_frozen_with_the_copies_of_each_scale(mode: NormMode):
    model = made("test_resnet", mode)
    norms = {parameter for m in model.modules() if isinstance(m, BATCH_NORMS) for parameter in m.parameters()}
    freeze(Settings(freeze_bn=True), model)
    assert {parameter for parameter in model.parameters() if not parameter.requires_grad} == norms
    assert len(fixed_norms(Settings(freeze_bn=True), model)) == 15 * (1 if mode == "off" else 2)
    assert fixed_norms(Settings(), model) == ()


class Half(Own):
    """Its classifier never learns."""

    def __init__(self, norm_learns: bool = False) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.body[1].requires_grad_(norm_learns)


@pytest.mark.parametrize(
    ("network", "settings", "epochs", "told"),
    [
        (Half, {"freeze": True}, 0, r"^--freeze: nothing is left to learn, because the model froze the rest$"),
        (lambda: Half(True), {"freeze_bn": True}, 0, r"^--freeze-bn: nothing is left to learn"),
        (lambda: Half(True), {}, 1, r"Phase.trainable head: phase 0 trains nothing, because the model froze it"),
        (lambda: Own("last"), {}, 1, r"Phase.trainable 'head': no parameter of the model begins with that"),
        ("test_vit", {"freeze_bn": True}, 0, r"^--freeze-bn would be ignored: .* has no BatchNorm"),
    ],
)
def test_a_freeze_is_refused_when_nothing_is_left_or_it_does_nothing(network, settings: dict, epochs: int, told: str):
    strategy = HeadFirst(SingleScale(16), epochs) if epochs else SingleScale(16)
    with pytest.raises(InputError, match=told):
        check_learning(Settings(**settings), made(network), strategy.phases(Budget(4, 100, 10)))
    check_learning(Settings(**settings), made("test_resnet"), strategy.phases(Budget(4, 100, 10)))  # control


def test_the_plan_tells_what_learns_and_how_fast():
    def told(**settings: Any) -> list[str]:
        return check_learning(Settings(**settings), made("test_resnet"), SingleScale(16).phases(Budget(4, 100, 10)))

    assert told() == []
    assert told(freeze=True, pretrained=True) == ["learns    679 of 373,367 parameters (--freeze)"]
    assert told(freeze=True)[1].startswith("warning   --freeze keeps random weights")
    assert told(layer_decay=0.5) == ["rates     6 factors on the learning rate, 0.0312 at the first layers to 1"]
