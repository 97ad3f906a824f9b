"""Statistics for a size that was not trained at: those of the training images, as NumPy finds them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tests.conftest import index_of, write_image
from toolkit.data.loading.batches import EvalBatchBuilder, load
from toolkit.data.loading.reader import ImageReader
from toolkit.models.classification import Classification
from toolkit.models.evaluator import Evaluator
from toolkit.models.multiview import MultiView, ScaleNorm
from toolkit.models.recalibration import recalibrate, unseen
from toolkit.strategies import Progressive, Simultaneous, SingleScale
from toolkit.strategies.base import EvalSpec, NormPolicy, Strategy

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])


class Net(nn.Module):
    """Normalizes its input, then tells left from right: what mirroring must change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.norm(x).chunk(2, dim=-1)
        return self.head(torch.cat([left.mean((2, 3)), right.mean((2, 3))], 1))


@pytest.fixture
def images(tmp_path: Path) -> ImageReader:
    names = [f"{i}.png" for i in range(12)]
    for i, name in enumerate(names):
        write_image(tmp_path / name, seed=i)
    return ImageReader(index_of(tmp_path, names, [i // 6 for i in range(12)]))


def evaluator(accelerator: Accelerator, mode: str, batch_size: int = 12, flip: bool = False) -> Evaluator:
    torch.manual_seed(0)
    model = MultiView(Net(), NormPolicy(mode, (8, 16)))  # type: ignore[arg-type]
    return Evaluator(accelerator, model, Classification(), ("a", "b"), MEAN, STD, batch_size, 0, flip=flip)


@pytest.mark.parametrize("mode", ["full", "statistics", "off"])
def test_a_size_has_the_statistics_of_the_training_images_when_it_is_recalibrated(
    accelerator: Accelerator, images: ImageReader, mode: str
):
    who = evaluator(accelerator, mode)
    specs = [EvalSpec(f"{size}px", (size,)) for size in (8, 12, 16)]
    before = who.score(images, specs)
    assert unseen(who, [8, 12, 16]) == [12]
    assert recalibrate(who, images, [12], seed=0) == 12
    assert unseen(who, [8, 12, 16]) == []
    norm = who.model.model.norm
    assert isinstance(norm, ScaleNorm)
    pixels = load(EvalBatchBuilder(images, (12,)), np.arange(12)).images[12].numpy() / 255
    seen = (pixels - MEAN.numpy()[:, None, None]) / STD.numpy()[:, None, None]
    np.testing.assert_allclose(norm.norms["12"].running_mean, seen.mean((0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(norm.norms["12"].running_var, seen.var((0, 2, 3), ddof=1), rtol=1e-4)
    after = who.score(images, specs)
    assert (after["8px"], after["16px"]) == (before["8px"], before["16px"])
    assert after["12px"]["loss"] != before["12px"]["loss"]
    assert after["12px"].norm_from is None


@pytest.mark.parametrize(
    ("strategy", "sizes"),
    [
        (SingleScale(16), [8, 12]),
        (Progressive((8, 16)), [8, 12]),
        (Progressive((8, 16), ramp=True), [8, 12]),
        (Progressive((8, 16), norm_per_scale="statistics"), [12]),
        (Simultaneous((8, 16), norm_per_scale="off"), [12]),
    ],
)
def test_a_size_that_the_statistics_are_not_of_is_unseen_when_they_are_shared(
    accelerator: Accelerator, images: ImageReader, strategy: Strategy, sizes: list[int]
):
    who = Evaluator(accelerator, MultiView(Net(), strategy.norm()), Classification(), ("a", "b"), MEAN, STD, 12, 0)
    specs = [EvalSpec(f"{size}px", (size,)) for size in (8, 12, 16)]
    before = who.score(images, specs)
    assert unseen(who, [8, 12, 16]) == sizes
    recalibrate(who, images, sizes, seed=0)
    after = who.score(images, specs)
    assert [size for size in (8, 12, 16) if after[f"{size}px"]["loss"] != before[f"{size}px"]["loss"]] == sizes


def test_statistics_are_means_over_whole_batches_when_there_are_several(accelerator: Accelerator, images: ImageReader):
    who = evaluator(accelerator, "full", batch_size=5)
    assert recalibrate(who, images, [12], seed=0) == 10


def test_a_model_without_batch_norm_has_nothing_to_recalibrate(accelerator: Accelerator):
    model = MultiView(nn.Sequential(nn.Conv2d(3, 2, 1)), NormPolicy("off", (8,)))
    assert unseen(Evaluator(accelerator, model, Classification(), ("a", "b"), MEAN, STD, 4, 0), [12]) == []


def test_an_image_and_its_mirror_are_told_the_same_when_both_are_averaged(
    accelerator: Accelerator, images: ImageReader
):
    batch = load(EvalBatchBuilder(images, (8,)), np.arange(12)).images[8]
    for flip in (True, False):
        who = evaluator(accelerator, "full", flip=flip)
        there, mirrored = (who.logits({8: pixels})[8].softmax(1) for pixels in (batch, batch.flip(-1)))
        assert torch.allclose(there, mirrored, atol=1e-6) == flip  # control: one alone tells them apart
