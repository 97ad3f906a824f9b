"""What the study of the strategies trains: arms, tasks, and parts of the study."""

from collections.abc import Sequence
from typing import NamedTuple

SIZES = (20, 32, 64)
NEAREST = """
import runpy, sys
import numpy as np
import torch.nn.functional as F
from toolkit.data.images import decode, views
def resize_to(pixels, height, width):
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((height, width), pixels.shape))
    return np.ascontiguousarray(pixels[rows][:, columns])
decode.resize_to = resize_to
views.resize = lambda images, size: F.interpolate(images, size=(size, size), mode="nearest-exact")
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Arm(NamedTuple):
    """How a model is trained; `epochs`: as a multiple of the task's. `nearest`: images are resized without filter."""

    flags: tuple[str, ...]
    epochs: float = 1.0
    nearest: bool = False

    @property
    def recipe(self) -> str:
        return "single_scale" if "--img-size" in self.flags else "multiscale"


class Task(NamedTuple):
    """What is learned: flags of the data and the model, sizes that the arms train at, and epochs."""

    flags: tuple[str, ...]
    sizes: tuple[int, ...] = SIZES
    epochs: int = 12


class Case(NamedTuple):
    part: str
    task: str
    arm: str
    seed: int

    @property
    def key(self) -> tuple[str, str, str]:
        return self.task, self.arm, str(self.seed)


SHARE = ("--consistency-share", "0.5")
ARMS = {
    "single small": Arm(("--img-size", "{0}")),
    "single middle": Arm(("--img-size", "{1}")),
    "single": Arm(("--img-size", "{2}")),
    "simultaneous": Arm(()),
    "progressive": Arm(("--progressive",)),
    "ramp": Arm(("--progressive", "--ramp")),
    "ramp, 11/12 of the epochs": Arm(("--progressive", "--ramp"), 11 / 12),
    "ramp, 3/2 of the epochs": Arm(("--progressive", "--ramp"), 1.5),
    "single, 1/2 of the epochs": Arm(("--img-size", "{2}"), 1 / 2),
    "single, 2/3 of the epochs": Arm(("--img-size", "{2}"), 2 / 3),
    "compute, 2 x the epochs": Arm(("--strategy", "progressive-compute"), 2.0),
    "sampled": Arm(("--strategy", "sampled"), 1.25),
    "progressive-simultaneous": Arm(("--strategy", "progressive-simultaneous"), 1.25),
    "simultaneous of five": Arm(("--scales", "{4}")),
    "sandwich of five": Arm(("--strategy", "sandwich", "--scales", "{4}")),
    "sandwich of five, share 0.5": Arm(("--strategy", "sandwich", "--scales", "{4}", *SHARE)),
    "single, 3/4 of the size": Arm(("--img-size", "{3}")),
    "finish": Arm(("--img-size", "{3}", "--finish-size", "{2}"), 13 / 12),
    # options of the consistency
    "weight 1": Arm(("--consistency-weight", "1")),
    "share 0.5": Arm(SHARE),
    "share 0.25": Arm(("--consistency-share", "0.25")),
    "share 0.5, constant": Arm((*SHARE, "--no-consistency-ramp")),
    "share 0.5, gated": Arm((*SHARE, "--consistency-gate")),
    "share 0.5, mean teacher": Arm((*SHARE, "--consistency-teacher", "mean")),
    "share 0.5, T 2": Arm((*SHARE, "--consistency-temperature", "2")),
    "share 0.5, standardized": Arm((*SHARE, "--consistency", "standardized", "--consistency-temperature", "2")),
    "share 0.5, dkd": Arm((*SHARE, "--consistency", "dkd")),
    "share 0.5, alpha": Arm((*SHARE, "--consistency", "alpha")),
    # three times the epochs
    "single, 3 x": Arm(("--img-size", "{2}"), 3.0),
    "simultaneous, 3 x": Arm((), 3.0),
    "share 0.5, T 2, 3 x": Arm((*SHARE, "--consistency-temperature", "2"), 3.0),
    # normalization
    "simultaneous, own statistics": Arm(("--norm-per-scale", "statistics")),
    "simultaneous, shared": Arm(("--norm-per-scale", "off")),
    "simultaneous, nearest": Arm((), nearest=True),
    # the stem
    "simultaneous, output stride 8": Arm(("--model-kwargs", "output_stride=8")),
    "share 0.5, T 2, output stride 8": Arm(
        ("--model-kwargs", "output_stride=8", *SHARE, "--consistency-temperature", "2")
    ),
    "single small, output stride 8": Arm(("--img-size", "{0}", "--model-kwargs", "output_stride=8")),
}
# Of each arm there is a single model with as much compute or more.
CORE = (
    *("single small", "single middle", "single", "simultaneous"),
    *("ramp, 11/12 of the epochs", "progressive", "single, 1/2 of the epochs", "progressive-simultaneous"),
)
MAIN = (
    *CORE,
    *("sampled", "share 0.5", "single, 2/3 of the epochs", "ramp, 3/2 of the epochs"),
    *("compute, 2 x the epochs", "single, 3/4 of the size", "finish"),
    *("simultaneous of five", "sandwich of five", "sandwich of five, share 0.5"),
)
BEST = ("share 0.5, T 2", "share 0.5, constant")  # of the options, by the mean of validation top-1 over three seeds
SHORT = ("single small", "single middle", "single", "simultaneous", BEST[0], "ramp", "single, 1/2 of the epochs")
OPTIONS = (
    *("weight 1", "share 0.25", "share 0.5", "share 0.5, constant", "share 0.5, gated", "share 0.5, mean teacher"),
    *("share 0.5, T 2", "share 0.5, standardized", "share 0.5, dkd", "share 0.5, alpha"),
)


class Part(NamedTuple):
    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: Sequence[int]


FEW = range(3)
PARTS = {
    "core": Part(("characters",), CORE, range(5)),
    "main": Part(("characters",), MAIN, range(5)),
    "options": Part(("characters",), ("simultaneous", *OPTIONS), FEW),
    "confirm": Part(("characters",), ("simultaneous", *BEST), range(3, 13)),  # seeds that chose nothing
    "long": Part(("characters",), ("single, 3 x", "simultaneous, 3 x", "share 0.5, T 2, 3 x"), FEW),
    "few": Part(("few characters",), SHORT, FEW),
    "tasks": Part(("shapes", "photographs"), SHORT, FEW),
    "tuned": Part(("tuned on shapes", "tuned on photographs"), SHORT[2:], FEW),
    "models": Part(("test_vit", "resnet10t"), SHORT[2:], FEW),
    "norms": Part(
        ("characters",), ("simultaneous, own statistics", "simultaneous, shared", "simultaneous, nearest"), FEW
    ),
    "stem": Part(
        ("characters",),
        ("simultaneous, output stride 8", "share 0.5, T 2, output stride 8", "single small, output stride 8"),
        FEW,
    ),
}

PLAIN = ("--crop-scale", "1", "--no-hflip", "--arch", "test_resnet", "--learning-rate", "4e-3")
PHOTO = ("--crop-scale", "0.7", "--no-hflip", "--arch", "test_resnet", "--learning-rate", "2e-3", "--ema-decay", "0.99")
VIT = ("--arch", "test_vit", "--model-kwargs", "patch_size=8", "--learning-rate", "1e-3")
TUNED = ("--pretrained", "--model-kwargs", "pretrained_cfg_overlay={{file: {weights}}}")


def tasks() -> dict[str, Task]:
    """Tasks by name; a path in braces stands for data or weights that `flags_of` makes."""
    characters = ("--data-root", "{characters}")
    shapes = ("--data-root", "synthetic", "--synthetic-size", "64")
    return {
        "characters": Task((*characters, *PLAIN)),
        "few characters": Task(("--data-root", "{few-characters}", *PLAIN), epochs=48),  # as many steps
        "shapes": Task(shapes),
        "photographs": Task(("--data-root", "{photographs}", *PHOTO), (16, 24, 32)),
        "tuned on shapes": Task((*shapes, *TUNED, "--learning-rate", "1e-3"), epochs=6),
        "tuned on photographs": Task(("--data-root", "{photographs}", *PHOTO, *TUNED), (16, 24, 32), 6),
        "test_vit": Task((*characters, *PLAIN[:3], *VIT), (16, 32, 64)),
        "resnet10t": Task(("--data-root", "{few-characters}", *PLAIN[:3], "--arch", "resnet10t"), epochs=8),
    }
