"""A model of the user's own: counted as timm counts, seeded, copied, named."""

import functools
from collections.abc import Mapping

import pytest
import timm
import torch
from timm.models import register_model
from torch import nn

from toolkit import InputError, Settings
from toolkit.models.inspection import ModelPlan
from toolkit.models.multiview import MultiView, ScaleNorm, state_tensors
from toolkit.models.source import ModelSource, make_source
from toolkit.strategies.base import NormPolicy
from toolkit.tools.export_model import one_scale

SCALES = (16, 32)


class Net(nn.Module):
    """One block at three places, one BatchNorm at two."""

    def __init__(self, num_classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width)
        self.also = self.norm
        self.block = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))
        self.blocks = nn.ModuleList([self.block, self.block])
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.also(self.norm(self.conv(x)).relu())
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def make(num_classes: int) -> nn.Module:
    return Net(num_classes)


def planned(source: ModelSource, mode: str = "full", scales=SCALES, micro_batch: int = 4, **values) -> ModelPlan:
    policy = NormPolicy(mode, scales)
    return source.plan(Settings(**values), 10, scales, policy, micro_batch=micro_batch, trained=scales)


def built(model, mode: str = "full", **values) -> MultiView:
    settings = Settings(**values)
    source = make_source(settings, model)
    return source.create(settings, planned(source, mode, **values), NormPolicy(mode, SCALES))


def norms(model: nn.Module) -> dict[str, ScaleNorm]:
    return {name: part for name, part in model.named_modules(remove_duplicate=False) if isinstance(part, ScaleNorm)}


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_efficientnet"])
def test_an_own_model_costs_what_the_same_one_of_timm_costs(arch: str):
    scales = (32, 64)
    theirs = planned(make_source(Settings(arch=arch)), "off", scales, arch=arch)
    more = {name: value for name, value in theirs.arguments.items() if name != "num_classes"}
    ours = planned(make_source(Settings(), functools.partial(timm.create_model, arch, **more)), "off", scales)
    for name in ("parameters", "batch_norms", "gmacs", "overstrided", "mean", "std", "unused"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_attention_is_counted_though_torch_runs_it_in_one_piece():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.Flatten(2), Turned(), layer, Mean(), nn.Linear(16, 10))
    gmacs = planned(make_source(Settings(), model), "off", (32,)).gmacs[32]
    tokens, width = 16, 16
    attention = 2 * tokens * tokens * width + 4 * tokens * width * width
    expected = tokens * 3 * 64 * width + attention + 2 * tokens * width * 32 + width * 10
    assert gmacs == pytest.approx(expected / 1e9)


class Turned(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


@pytest.mark.parametrize("mode", ["full", "statistics"])
def test_a_layer_at_several_places_stays_one_when_each_scale_owns_normalization(mode: str):
    model = built(Net(), mode)
    found = norms(model.model)
    assert found["norm"] is found["also"]
    assert found["block.1"] is found["blocks.0.1"] is found["blocks.1.1"]
    assert len(model.scale_norms) == 2
    plain = one_scale(model, 16)
    fresh = Net()
    fresh.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(pixels), model.eval()(pixels)[0])


def test_initial_weights_are_the_objects_own_and_those_of_a_function_depend_on_the_seed():
    model = Net()
    given = state_tensors(built(model, "off"))
    assert all(torch.equal(given[f"model.{name}"], tensor) for name, tensor in state_tensors(model).items())
    one, again, other = (state_tensors(built(make, "off", seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_planning_changes_neither_the_object_nor_what_a_function_keeps():
    kept = Net()
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    for model in (kept, lambda num_classes: kept):
        planned(make_source(Settings(), model))
        assert all(torch.equal(before[name], tensor) for name, tensor in kept.state_dict().items())


def test_parameters_without_a_gradient_are_noticed():
    class Spare(Net):
        def __init__(self, frozen: bool) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2).requires_grad_(not frozen)

    assert planned(make_source(Settings(), Spare(frozen=False))).unused
    assert not planned(make_source(Settings(), Spare(frozen=True))).unused  # nothing waits for it
    assert not planned(make_source(Settings(), Net())).unused


@register_model
def net_with_a_spare_layer(pretrained: bool = False, num_classes: int = 10, **_: object) -> nn.Module:
    net = Net(num_classes)
    net.spare = nn.Linear(2, 2)
    return net


def test_parameters_without_a_gradient_are_noticed_in_a_model_registered_with_timm():
    plan = planned(make_source(Settings(arch="net_with_a_spare_layer")), arch="net_with_a_spare_layer")
    assert (plan.unused, plan.modules) == (True, (HERE,))
    assert not planned(make_source(Settings(arch="test_resnet")), arch="test_resnet").unused


class BySize(Net):
    """Has a layer that only images of 24 px use in training, or all sizes but 24 px."""

    def __init__(self, num_classes: int = 10, only: bool = True, raises: bool = False) -> None:
        super().__init__(num_classes)
        self.extra, self.only, self.raises = nn.Conv2d(3, 3, 1), only, raises

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at_24 = x.shape[-1] == 24
        if at_24 and self.raises and self.training:
            raise RuntimeError("no 24")
        return super().forward(self.extra(x) if at_24 == self.only else x)


@register_model
def net_by_size(pretrained: bool = False, num_classes: int = 10, only: bool = True, raises: bool = False, **_: object):
    return BySize(num_classes, only, raises)


@pytest.mark.parametrize("mode", ["full", "statistics", "off"])
@pytest.mark.parametrize("only", [True, False])
def test_parameters_without_a_gradient_at_one_size_are_noticed(mode: str, only: bool):
    registered = {"arch": "net_by_size", "model_kwargs": {"only": only}}
    for source, values in (
        (make_source(Settings(), BySize(only=only)), {}),
        (make_source(Settings(**registered)), registered),
    ):
        assert planned(source, mode, (16, 24, 32), **values).unused
        used = (24,) if only else (16, 32)
        assert not planned(source, mode, used, **values).unused  # control


def test_training_is_tried_at_every_size_that_is_trained_and_at_no_other():
    registered = {"arch": "net_by_size", "model_kwargs": {"raises": True}}
    for source, values, told in (
        (make_source(Settings(), BySize(raises=True)), {}, r"cannot be trained at 24 px: RuntimeError: no 24"),
        (make_source(Settings(**registered)), registered, r"--arch net_by_size: at 24 px in training it fails: no 24"),
    ):
        policy = NormPolicy("off", (32,))
        both = {"micro_batch": 4, "trained": (16, 32)}
        source.plan(Settings(**values), 10, (16, 24, 32), policy, **both)  # control
        with pytest.raises(InputError, match=told):
            source.plan(Settings(**values), 10, (16, 24, 32), policy, **{**both, "trained": (16, 24, 32)})


def test_statistics_are_synchronized_under_the_same_names():
    synchronized = built(Net(), sync_bn=True)
    assert any(isinstance(part, nn.SyncBatchNorm) for part in synchronized.modules())
    assert state_tensors(synchronized).keys() == state_tensors(built(Net())).keys()


HERE = __name__
NAMES: Mapping[str, tuple[object, str, str]] = {
    "function": (make, f"{HERE}:make", "make"),
    "class": (Net, f"{HERE}:Net", "Net"),
    "text": (f"{HERE}:make", f"{HERE}:make", "make"),
    "object": (Net(), f"an object of {HERE}.Net", "Net"),
    "lambda": (lambda num_classes: Net(num_classes), f"a function {HERE}.<lambda>", "lambda"),
    "partial": (functools.partial(make, 3), f"a partial of {HERE}.make", "make"),
}


@pytest.mark.parametrize(("model", "text", "name"), NAMES.values(), ids=NAMES)
def test_a_model_is_recorded_by_the_name_that_finds_it_again_or_by_words(model, text: str, name: str):
    source = make_source(Settings(), model)
    assert source.recorded() == {"model_from": text}
    assert Settings(model_from=text).model_name == name


def test_code_is_that_of_the_function_and_of_all_layers():
    assert planned(make_source(Settings(), make)).modules == (HERE,)
    assert planned(make_source(Settings(), Net())).modules == (HERE,)
    assert planned(make_source(Settings(arch="test_resnet"))).modules == ()


def test_words_and_names_that_nobody_gave_are_refused():
    with pytest.raises(InputError, match=r"an object of a\.Net: pass it again as model=\.\.\., or give --model-from"):
        make_source(Settings(model_from="an object of a.Net"))
    with pytest.raises(InputError, match="--model-from a_module:make: give that flag again to allow running it"):
        make_source(Settings(model_from="a_module:make"))
