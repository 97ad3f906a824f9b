"""Which tensors of other training a model takes, under whose names and in whose shapes."""

import argparse
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from toolkit.config.settings import Settings
from toolkit.models.initial_weights import InitialWeights, StoredWeights, _converted, fit, head_names, names_in_order
from toolkit.models.multiview import MultiView, state_tensors
from toolkit.models.source import make_source
from toolkit.runs import weight_files
from toolkit.strategies.base import NormPolicy
from toolkit.system.errors import InputError

CLASSES = ("ant", "bee", "cat")
OFF = NormPolicy("off", (32,))


def state(arch: str = "test_resnet", classes: int = 3, seed: int = 1, **arguments: object) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = timm.create_model(arch, num_classes=classes, **arguments)
    for name, tensor in model.named_buffers():
        if name.endswith("running_mean"):
            tensor.normal_()
    return model.state_dict()


def fitted(tensors: dict[str, Tensor], arch: str = "test_resnet", policy: NormPolicy = OFF, **arguments) -> dict:
    """By name, what a new model of three classes takes."""
    with torch.device("meta"):
        network = timm.create_model(arch, num_classes=3, **arguments)
    found = fit(StoredWeights("--weights F", tensors), network, arch, CLASSES, policy)
    return {**found.by_scale[policy.scales[-1]]}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "model.", "module.net.backbone."])
def test_the_prefix_of_a_wrapper_does_not_matter(prefix: str):
    tensors = state()
    assert same(
        fitted({f"{prefix}{name}": tensor for name, tensor in tensors.items()} | {"loss.scale": torch.ones(1)}), tensors
    )


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda tensors, other: tensors,
        lambda tensors, other: {"epoch": 3, "state_dict": {f"module.{name}": tensors[name] for name in tensors}},
        lambda tensors, other: {"state_dict": other, "state_dict_ema": tensors},
        lambda tensors, other: {"model": tensors, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "groups": [1]}},
        lambda tensors, other: {"net": tensors, "best": 0.5},
        lambda tensors, other: {"state_dict": tensors, "args": argparse.Namespace(lr=0.1), "arch": "x"},
    ],
    ids=["plain", "state_dict", "ema", "model", "net", "timm"],
)
def test_a_torch_file_is_read_in_each_of_the_usual_wrappers(tmp_path: Path, wrapped):
    tensors, name = state(), "model_best.pth.tar"
    torch.save(wrapped(tensors, state(seed=2)), tmp_path / name)
    assert same(fitted({**weight_files.read(tmp_path / name).tensors}), tensors)


def test_only_what_belongs_to_the_model_is_taken():
    tensors = state()
    more = {"projector.weight": torch.ones(3), "head.weight": torch.ones(3), "queue": torch.ones(2, 2)}
    assert same(fitted(tensors | more), tensors)
    counted = {name: tensor for name, tensor in tensors.items() if "num_batches" not in name}
    assert same(fitted(counted), counted)
    for name, wrong in {
        "conv1.0.weight": tensors | {"conv1.0.weight": torch.ones(3, 3, 3, 3)},
        "layer2.0.bn1.weight is missing": {n: t for n, t in tensors.items() if n != "layer2.0.bn1.weight"},
        "layer2.0.bn1.running_var is missing": {n: t for n, t in tensors.items() if n != "layer2.0.bn1.running_var"},
        "layer1.7.conv1.weight is not in the model": tensors | {"layer1.7.conv1.weight": torch.ones(3)},
    }.items():
        with pytest.raises(InputError, match=rf"--weights F: the weights do not fit test_resnet: {name}"):
            fitted(wrong)
    name = "layer1.0.bn1.weight"
    with pytest.raises(InputError, match=f"--weights F: NaN or infinite values in {name}; take other weights"):
        fitted(tensors | {name: torch.full_like(tensors[name], torch.nan)})


@pytest.mark.parametrize("arch", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "test_byobnet"])
def test_the_head_is_known_and_its_rows_are_put_into_the_order_of_the_classes(arch: str):
    with torch.device("meta"):
        network = timm.create_model(arch, num_classes=3)
    tensors, named = state(arch), ("cat", "ant", "bee")
    assert head_names(network, 3) == [name for name in tensors if tensors[name].shape[:1] == (3,)]
    found = fit(StoredWeights("--weights F", tensors, named), network, arch, CLASSES, OFF).by_scale[32]
    for name in tensors:
        expected = tensors[name][[1, 2, 0]] if name in head_names(network, 3) else tensors[name]
        assert torch.equal(found[name], expected)


def test_position_tables_are_resized_as_timm_resizes_them():
    tensors = state("test_vit", img_size=160)
    theirs = timm.create_model(
        "test_vit", True, num_classes=3, img_size=64, pretrained_cfg_overlay={"state_dict": tensors, "num_classes": 3}
    )
    assert theirs.pos_embed.shape != tensors["pos_embed"].shape  # control
    assert same(fitted(tensors, "test_vit", img_size=64), theirs.state_dict())


@pytest.mark.parametrize("arch", ["test_vit", "test_resnet"])
def test_a_new_model_has_the_tensors_that_timm_would_load_and_the_same_new_head(arch: str):
    tensors, settings = state(arch, classes=10), Settings(arch=arch, seed=7)
    torch.manual_seed(7)
    overlay = {"state_dict": tensors, "num_classes": 10}
    theirs = timm.create_model(arch, True, num_classes=3, pretrained_cfg_overlay=overlay)
    source = make_source(settings)
    plan = source.plan(settings, 3, (160,), OFF)
    ours = source.create(settings, plan, OFF)
    network = source.network(settings, plan)
    fit(StoredWeights("--weights F", tensors), network, arch, CLASSES, OFF).copy_to(ours)
    assert same(ours.model.state_dict(), theirs.state_dict())


def test_torchvisions_weights_of_a_vgg_are_converted():
    with torch.device("meta"):
        theirs, ours = torchvision.models.vgg11(init_weights=False).state_dict(), timm.create_model("vgg11")
    head = head_names(ours, 1000)
    found = _converted(theirs, ours, ours.state_dict(), head)
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in ours.state_dict().items()}


def test_names_and_shapes_of_the_original_code_are_those_that_timm_converts():
    tensors = state("test_vit")
    original = tensors | {"patch_embed.proj.weight": tensors["patch_embed.proj.weight"].flatten(1)}
    assert same(fitted(original, "test_vit"), tensors)


def views(mode: str, *scales: int, seed: int = 1) -> MultiView:
    """A model whose scales all differ."""
    torch.manual_seed(seed)
    model = MultiView(timm.create_model("test_resnet", num_classes=3), NormPolicy(mode, scales))
    for tensor in state_tensors(model).values():
        if tensor.is_floating_point():
            tensor.data.normal_()
    return model


def started(source: MultiView, mode: str, *scales: int) -> dict[str, Tensor]:
    """The tensors of a new model that starts from the ones of `source`."""
    with torch.device("meta"):
        network = timm.create_model("test_resnet", num_classes=3)
    found = fit(
        StoredWeights("--weights R", state_tensors(source)), network, "test_resnet", CLASSES, NormPolicy(mode, scales)
    )
    assert isinstance(found, InitialWeights)
    model = views(mode, *scales, seed=2)
    found.copy_to(model)
    return state_tensors(model)


def test_a_scale_has_its_normalization_by_name_else_that_of_the_nearest():
    source = views("full", 16, 32)
    theirs, ours = state_tensors(source), started(source, "full", 12, 32, 64)
    for what in ("weight", "bias", "running_mean", "running_var"):
        for scale, nearest in {12: 16, 32: 32, 64: 32}.items():
            name = f"model.layer1.0.bn1.norms.{{}}.{what}"
            assert torch.equal(ours[name.format(scale)], theirs[name.format(nearest)])
    assert torch.equal(ours["model.fc.weight"], theirs["model.fc.weight"])


def test_one_normalization_comes_from_the_nearest_scale_and_goes_to_all():
    source = views("full", 16, 32)
    theirs, ours = state_tensors(source), started(source, "off", 20)
    name = "model.layer1.0.bn1.{}running_mean"
    assert torch.equal(ours[name.format("")], theirs[name.format("norms.16.")])
    plain = views("off", 32)
    theirs, ours = state_tensors(plain), started(plain, "statistics", 16, 32)
    assert all(torch.equal(ours[name.format(f"norms.{scale}.")], theirs[name.format("")]) for scale in (16, 32))
    again = views("statistics", 16, 32)
    theirs, ours = state_tensors(again), started(again, "statistics", 16, 32)
    assert same(ours, theirs)


class Net(nn.Module):
    def __init__(self, classes: int, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.last(self.body(pixels))


def test_a_model_of_ones_own_takes_weights_too():
    settings = Settings(data_root="photos")
    source = make_source(settings, lambda num_classes: Net(num_classes))
    plan = source.plan(settings, 3, (16,), NormPolicy("full", (16,)))
    network = source.network(settings, plan)

    def of(trained: Net, classes: tuple[str, ...] | None) -> InitialWeights:
        return fit(StoredWeights("--weights F", trained.state_dict(), classes), network, source.name, CLASSES, OFF)

    net = Net(3)
    assert torch.equal(of(net, ("cat", "bee", "ant")).by_scale[32]["last.weight"], net.last.weight.flip(0))
    assert "5 classes, the data 3" in of(Net(5), None).lines[0]
    with pytest.raises(InputError, match=r"body\.0\.weight is 5 x 3 x 3 x 3 there, 4 x 3 x 3 x 3 in the model; .*more"):
        of(Net(3, 5), None)


def test_numbers_as_class_names_are_warned_about_where_their_order_is_unknown():
    names = tuple(map(str, sorted(map(str, range(12)))))
    with torch.device("meta"):
        network = timm.create_model("test_resnet", num_classes=12)

    def lines(classes: tuple[str, ...] | None, now: tuple[str, ...] = names) -> tuple[str, ...]:
        return fit(StoredWeights("--weights F", state(classes=12), classes), network, "test_resnet", now, OFF).lines

    assert "in the order of text here (0, 1, 10, ... (12 in all)), in that of numbers in timm" in lines(None)[1]
    assert len(lines(names)) == 1
    assert len(lines(None, tuple("abcdefghijkl"))) == 1
    assert len(lines(None, tuple(f"{i:02}" for i in range(12)))) == 1


def test_names_of_classes_are_in_the_order_of_labels_however_a_file_lists_them():
    names = tuple("abcdefghijkl")
    by_text = {str(label): names[label] for label in sorted(range(12), key=str)}  # as sort_keys=True writes it
    assert names_in_order(names) == names_in_order(by_text) == names
    assert names_in_order({name: label for label, name in enumerate(names)}) == names
