"""The note on training sizes whose last feature map is below 2 x 2: when it comes, and that what it suggests helps."""

import re

import pytest
import timm
import torch
from torch import Tensor, nn

from toolkit import Settings
from toolkit.models.inspection import ModelPlan
from toolkit.models.own_source import OwnModelSource
from toolkit.models.source import TimmSource
from toolkit.strategies.base import NormPolicy


def planned(arch: str, trained: tuple[int, ...], evaluated: tuple[int, ...] = (), **values) -> ModelPlan:
    settings, sizes = Settings(arch=arch, **values), sorted({*trained, *evaluated})
    return TimmSource(arch).plan(settings, 10, sizes, NormPolicy("off", trained), trained=trained)


def note(arch: str, trained: tuple[int, ...], evaluated: tuple[int, ...] = (), **values) -> str:
    """The further lines of the plan, as one text."""
    return "\n".join(TimmSource(arch).notes(planned(arch, trained, evaluated, **values)))


SUGGESTION = re.compile(
    r"note      the last feature map of (\w+) is 1 x 1 at [\d and]+ px: --model-kwargs (\w+)=(\d+) makes it "
    r"(\d+) x \4 at (\d+) px, for ([\d.]+) times the multiply-adds there(?:, ([\d.]+) times at (\d+) px)?"
)


@pytest.mark.parametrize(
    ("arch", "trained"),
    [
        ("test_resnet", (20,)),
        ("test_resnet", (20, 32, 64)),
        ("test_resnet", (16, 64)),
        ("resnet18", (32, 64)),
        ("test_efficientnet", (20, 48)),
        ("test_convnext", (32,)),
        ("test_nfnet", (32,)),
    ],
)
def test_what_is_suggested_gives_the_map_and_costs_what_it_says(arch: str, trained: tuple[int, ...]):
    found = SUGGESTION.fullmatch(note(arch, trained))
    assert found, note(arch, trained)
    name, argument, value, side, size, there, at_largest, largest = found.groups()
    assert (name, int(size)) == (arch, min(trained))
    plain, changed = (timm.create_model(arch, num_classes=10, **given) for given in ({}, {argument: int(value)}))
    images = torch.zeros(1, 3, int(size), int(size))
    with torch.no_grad():
        assert plain.eval().forward_features(images).shape[-2:] == (1, 1)  # control
        assert changed.eval().forward_features(images).shape[-2:] == (int(side), int(side))
    assert int(side) >= 2
    before, after = (planned(arch, trained, model_kwargs=given) for given in ([], [f"{argument}={value}"]))
    assert after.small_maps == ""
    assert float(there) == pytest.approx(after.gmacs[int(size)] / before.gmacs[int(size)], abs=0.05)
    if at_largest:
        assert int(largest) == max(trained)
        assert float(at_largest) == pytest.approx(after.gmacs[max(trained)] / before.gmacs[max(trained)], abs=0.05)


@pytest.mark.parametrize(
    ("arch", "trained", "evaluated"),
    [
        ("resnet18", (64,), ()),  # 2 x 2
        ("resnet18", (64,), (32,)),  # 1 x 1 where it is only evaluated
        ("test_vit", (32,), ()),  # tokens
        ("mixer_s32_224", (224,), ()),
        ("swin_tiny_patch4_window7_224", (224,), ()),  # 7 x 7 x 768, channels last
    ],
)
def test_nothing_is_said_of_maps_that_are_large_enough_and_of_tokens(
    arch: str, trained: tuple[int, ...], evaluated: tuple[int, ...]
):
    assert note(arch, trained, evaluated) == ""


def test_the_smallest_size_that_helps_is_named_when_no_argument_does():
    start = "note      the last feature map of vgg11 is 1 x 1 at 32 px: "
    assert note("vgg11", (32,)) == f"{start}no output_stride or patch_size helps; it is 2 x 2 from 64 px on"
    assert note("vgg11", (63,)).startswith(start.replace("32", "63"))
    assert note("vgg11", (64,)) == ""


def test_maps_with_channels_last_are_measured_in_pixels():
    assert planned("test_mambaout", (32, 64)).last_maps == {32: (1, 1), 64: (2, 2)}
    assert "is 1 x 1 at 32 px" in note("test_mambaout", (32, 64))


def test_no_argument_is_suggested_that_was_given():
    assert "output_stride" in note("test_resnet", (20,))  # control
    given = note("test_resnet", (20,), model_kwargs=["output_stride=32"])
    assert given.endswith("is 1 x 1 at 20 px: no patch_size helps; it is 2 x 2 from 33 px on")


def test_an_argument_that_changes_the_weights_is_not_suggested_for_pretrained_ones():
    given = {"model_kwargs": ["output_stride=32"]}
    assert "--model-kwargs patch_size=1" in note("test_convnext", (32,), **given)  # control
    assert "no patch_size helps" in note("test_convnext", (32,), **given, pretrained=True)


class Own(nn.Module):
    """Halves its images five times."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), *(nn.Conv2d(4, 4, 3, 2, 1) for _ in range(4)))
        self.head = nn.Linear(4, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean((2, 3)))


class Plain(Own):
    """Does not use that method."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "trained", "expected"),
    [
        (Own, (32, 64), ["note      the last feature map of own is 1 x 1 at 32 px"]),
        (Own, (64,), []),
        (Plain, (32, 64), []),
    ],
)
def test_an_own_model_is_warned_about_without_a_suggestion(kind: type, trained: tuple[int, ...], expected: list[str]):
    source = OwnModelSource("own", kind())
    plan = source.plan(Settings(), 10, trained, NormPolicy("off", trained), micro_batch=2, trained=trained)
    assert [line for line in source.notes(plan) if line.startswith("note")] == expected
    assert "forward_features" not in vars(source.target)
