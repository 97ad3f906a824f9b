"""Models of the user's own that cannot work: one line with the value and the rule, exit code 2, nothing written."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY, recipe

WORDS = [*TINY, "--scales", "16,32", "--num-workers", "0"]

BAD_NETS = """
import torch
from torch import nn


class Good(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def features(self, x):
        return self.norm(self.conv(x)).relu()

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class WithAux(Good):
    def forward(self, x):
        return super().forward(x), super().forward(x)


class AuxInTraining(Good):
    def forward(self, x):
        logits = super().forward(x)
        return {"logits": logits} if self.training else logits


class Tokens(Good):
    def forward(self, x):
        return self.head(self.features(x).flatten(2).transpose(1, 2))


class OneSize(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4 * 16 * 16, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


class Frozen(Good):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.requires_grad_(False)


class Detached(Good):
    def forward(self, x):
        return super().forward(x).detach()


class ReadsNorm(Good):
    def forward(self, x):
        return super().forward(x) * self.norm.weight.mean()


class Lazy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.LazyLinear(num_classes)


class NoCopy(Good):
    def __deepcopy__(self, memo):
        raise TypeError("one of a kind")


class BadConfig(Good):
    pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}


def thousand(num_classes):
    return Good(1000)


def raises(num_classes):
    raise OSError("no such\\nfile")


def nothing(num_classes):
    return None


def other_name(classes):
    return Good(classes)


number = 3
"""
CASES = [
    ("nosuch_module:make", "--model-from nosuch_module:make: nosuch_module: cannot be imported: ModuleNotFoundError"),
    ("bad_nets", "--model-from bad_nets: must be of the form module:function"),
    ("bad_nets:", "--model-from bad_nets:: must be of the form module:function"),
    ("bad_nets:Goood", "--model-from bad_nets:Goood: bad_nets has no Goood; did you mean Good?"),
    ("bad_nets:number", "bad_nets:number: of type int, must be a function that makes a torch.nn.Module"),
    ("bad_nets:raises", "--model-from bad_nets:raises: failed with OSError: no such"),
    ("bad_nets:nothing", "--model-from bad_nets:nothing: returned NoneType, must return a torch.nn.Module"),
    (
        "bad_nets:other_name",
        "cannot be called with num_classes=10 (num_classes and --model-kwargs): missing a required",
    ),
    ("bad_nets:WithAux", "WithAux: at 16 px it returns tuple: it must return one tensor, images x classes"),
    ("bad_nets:AuxInTraining", "AuxInTraining: at 16 px in training it returns dict: it must return one tensor"),
    ("bad_nets:Tokens", "Tokens: at 16 px it returns 2 x 49 x 10: it must be 2 x 10, images x classes"),
    ("bad_nets:thousand", "thousand: at 16 px it returns 2 x 1000: it must be 2 x 10, images x classes"),
    ("bad_nets:OneSize", "--model-from bad_nets:OneSize cannot take 16 px images: RuntimeError: mat1 and mat2"),
    ("bad_nets:Frozen", "--model-from bad_nets:Frozen: has no parameters to train"),
    ("bad_nets:Detached", "--model-from bad_nets:Detached cannot be trained at 16 px: RuntimeError: element 0"),
    ("bad_nets:ReadsNorm", "BatchNorm layers may only be called, except with --norm-per-scale off"),
    ("bad_nets:Lazy", "--model-from bad_nets:Lazy: has lazy layers"),
    ("bad_nets:NoCopy", "--model-from bad_nets:NoCopy: cannot be copied: TypeError: one of a kind"),
    ("bad_nets:BadConfig", "pretrained_cfg has mean (0.5,) and std (0.5,): 3 values each, std above 0"),
]
GOOD = ("--model-from", "bad_nets:Good")
FLAGS_TOO = [
    (("--arch", "resnet18"), "--arch would be ignored: the model is bad_nets:Good"),
    (("--no-pretrained",), "--pretrained would be ignored: the model is bad_nets:Good"),
    (("--dropout-rate", "0.1"), "--dropout-rate would be ignored: the model is bad_nets:Good"),
    (("--drop-path", "0.1"), "--drop-path would be ignored: the model is bad_nets:Good"),
    (("--model-kwargs", "depth=3"), "cannot be called with num_classes=10, depth=3 (num_classes and --model-kwargs)"),
    (("--model-kwargs", "num_classes=3"), "--model-kwargs num_classes: the data says how many classes there are"),
    (("--device-batch-size", "1", "--scales", "3,32"), "leaves 1 image per process and forward: at 3 px the BatchNorm"),
]


@pytest.fixture
def bad_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of models that cannot work."""
    (tmp_path / "bad_nets.py").write_text(BAD_NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("bad_nets", None)


def refused_here(folder: Path, capsys: pytest.CaptureFixture[str], name: str, *words: str) -> str:
    """The one line with which a recipe refuses in this process, having written nothing."""
    before = sorted(folder.rglob("*"))
    assert recipe(name)(words) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in out + err
    assert sorted(folder.rglob("*")) == before
    return err


@pytest.mark.parametrize(("name", "told"), CASES, ids=[name for name, _ in CASES])
def test_an_own_model_is_refused_in_one_line_when_it_cannot_be_trained(bad_nets: Path, capsys, name: str, told: str):
    assert told in refused_here(bad_nets, capsys, "multiscale", *WORDS, "--model-from", name)


@pytest.mark.parametrize(("words", "told"), FLAGS_TOO, ids=[words[0] for words, _ in FLAGS_TOO])
def test_flags_are_refused_when_an_own_model_would_ignore_them(bad_nets: Path, capsys, words, told: str):
    assert told in refused_here(bad_nets, capsys, "multiscale", *WORDS, *GOOD, *words)


def test_a_good_one_is_planned_beside_the_bad_ones(bad_nets: Path):
    """The control of the tests above."""
    assert recipe("multiscale")([*WORDS, *GOOD, "--dry-run"]) == 0
    reads = ("--model-from", "bad_nets:ReadsNorm", "--norm-per-scale", "off")
    assert recipe("multiscale")([*WORDS, *reads, "--dry-run"]) == 0


REGISTERED = """
from timm.models import register_model
from torch import nn


class Plain(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


class Aux(Plain):
    def forward(self, x):
        return (super().forward(x),) * 2 if self.training else super().forward(x)


@register_model
def bad_net_plain(pretrained=False, num_classes=1000, **_):
    return Plain(num_classes)


@register_model
def bad_net_aux(pretrained=False, num_classes=1000, **_):
    return Aux(num_classes)


@register_model
def bad_net_classes(pretrained=False, **_):
    return Plain(1000)


@register_model
def bad_net_raises(pretrained=False, **_):
    raise AttributeError("no such\\nattribute")
"""


@pytest.mark.parametrize(
    ("arch", "told"),
    [
        ("bad_net_aux", "--arch bad_net_aux: at 16 px in training it returns tuple: it must return one tensor"),
        ("bad_net_classes", "--arch bad_net_classes: at 16 px it returns 1 x 1000: it must be 1 x 10"),
        ("bad_net_raises", "--arch bad_net_raises (--model-kwargs none given): no such"),
    ],
)
def test_a_model_registered_with_timm_is_refused_in_one_line(bad_nets: Path, capsys, arch: str, told: str):
    (bad_nets / "registered_bad_nets.py").write_text(REGISTERED)
    words = [*WORDS, "--import", "registered_bad_nets", "--arch"]
    assert told in refused_here(bad_nets, capsys, "multiscale", *words, arch)
    assert recipe("multiscale")([*words, "bad_net_plain", "--dry-run"]) == 0  # control


def test_a_function_of_an_installed_library_trains_when_the_flag_names_it(bad_nets: Path):
    """Unlike when only a run names it: the module's being imported already is not what counts."""
    assert recipe("multiscale")([*WORDS, "--model-from", "torchvision.models:resnet18", "--dry-run"]) == 0


def test_an_own_model_has_no_size_of_its_own(bad_nets: Path, capsys):
    told = refused_here(bad_nets, capsys, "single_scale", *TINY, *GOOD)
    assert "--img-size is missing: --model-from bad_nets:Good has no default size" in told
    assert recipe("single_scale")([*TINY, *GOOD, "--img-size", "16", "--dry-run"]) == 0
