"""Evaluation is exact: through real files, a real Accelerator and scikit-learn's metrics."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor, nn

from tests.conftest import index_of, paths_of
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.index import Index
from toolkit.models.classification import Classification
from toolkit.models.evaluator import Evaluator
from toolkit.models.multiview import MultiView, state_tensors
from toolkit.strategies.base import EvalSpec, NormPolicy

CLASSES, IMAGES, SIZES = 7, 23, (8, 16)
MEAN, STD = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.5])


class MeanColor(nn.Module):
    """Logits from the mean color, shifted by a multiple of the size: what it says can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)) * (x.shape[-1] / 8))


@pytest.fixture
def images(tmp_path: Path) -> ImageReader:
    """One-colored images, so that no resize changes them."""
    rng, names = np.random.default_rng(0), [f"{i}.png" for i in range(IMAGES)]
    for name in names:
        pixels = np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (20, 20, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / name)
    return ImageReader(index_of(tmp_path, names, rng.integers(0, CLASSES, IMAGES).tolist()))


def multi_view(mode: str = "off", scales: tuple[int, ...] = SIZES) -> MultiView:
    torch.manual_seed(0)
    return MultiView(MeanColor(), NormPolicy(mode, scales))  # type: ignore[arg-type]


def evaluator(accelerator: Accelerator, model: MultiView, batch_size: int = 4, threads: int = 2) -> Evaluator:
    mean, std = torch.tensor(MEAN, dtype=torch.float32), torch.tensor(STD, dtype=torch.float32)
    classes = tuple(map(str, range(next(m for m in model.modules() if isinstance(m, nn.Linear)).out_features)))
    return Evaluator(accelerator, model, Classification(), classes, mean, std, batch_size, threads)


def probabilities(index: Index, model: MultiView, size: int) -> np.ndarray:
    """What the model says of every image, worked out in numpy from PIL's pixels."""
    weight, bias = (tensor.detach().numpy().astype(float) for tensor in model.model.head.parameters())
    colors = np.array([np.array(Image.open(path))[0, 0] for path in paths_of(index)]) / 255
    return softmax((colors - MEAN) / STD * (size / 8) @ weight.T + bias, axis=1)


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
@pytest.mark.parametrize("threads", [0, 2])
def test_figures_agree_with_scikit_learn_when_batches_do_not_divide_the_images(
    accelerator: Accelerator, images: ImageReader, batch_size: int, threads: int
):
    model = multi_view()
    specs = [EvalSpec("8px", (8,)), EvalSpec("16px", (16,)), EvalSpec("both", (8, 16))]
    scores = evaluator(accelerator, model, batch_size, threads).score(images, specs)
    small, large = (probabilities(images.index, model, size) for size in SIZES)
    for name, said in {"8px": small, "16px": large, "both": (small + large) / 2}.items():
        labels, score = np.arange(CLASSES), scores[name]
        top1, top5 = (top_k_accuracy_score(images.index.labels, said, k=k, labels=labels) for k in (1, 5))
        assert score["top1"] == pytest.approx(100 * top1)
        assert score["top5"] == pytest.approx(100 * top5)
        assert score["loss"] == pytest.approx(log_loss(images.index.labels, said, labels=labels), rel=1e-4)
        assert (score.images, score.norm_from) == (IMAGES, None)
    assert len({scores[name]["loss"] for name in scores}) == 3  # control: sizes differ


def test_a_figure_is_the_same_when_others_are_asked_for_too(accelerator: Accelerator, images: ImageReader):
    who = evaluator(accelerator, multi_view())
    alone = who.score(images, [EvalSpec("8px", (8,))])
    among = who.score(images, [EvalSpec("8px", (8,)), EvalSpec("12px", (12,)), EvalSpec("both", (8, 16))])
    assert among["8px"] == alone["8px"]


def test_the_top_5_are_all_when_there_are_fewer_classes(accelerator: Accelerator, images: ImageReader):
    model = multi_view()
    model.model.head = nn.Linear(3, 2)
    binary = ImageReader(replace(images.index, labels=images.index.labels % 2))
    assert evaluator(accelerator, model).score(binary, [EvalSpec("8px", (8,))])["8px"]["top5"] == 100


def test_the_scale_that_lends_its_normalization_is_named_when_a_size_has_none(
    accelerator: Accelerator, images: ImageReader
):
    model = MultiView(nn.Sequential(nn.BatchNorm2d(3), MeanColor()), NormPolicy("full", (8, 16)))
    scores = evaluator(accelerator, model).score(images, [EvalSpec(f"{size}px", (size,)) for size in (8, 9, 16, 64)])
    assert {name: score.norm_from for name, score in scores.items()} == {
        "8px": None,
        "9px": 8,
        "16px": None,
        "64px": 16,
    }
    assert "normalization of 8 px" in scores["9px"].line(Classification.metrics)
    assert "normalization" not in scores["8px"].line(Classification.metrics)


def test_nothing_of_the_training_changes_when_a_model_is_evaluated(accelerator: Accelerator, images: ImageReader):
    def with_statistics() -> MultiView:
        return MultiView(nn.Sequential(nn.BatchNorm2d(3), MeanColor()), NormPolicy("off", SIZES))

    training, copy = with_statistics().train(), with_statistics()
    before = {name: tensor.detach().clone() for name, tensor in state_tensors(training).items()}
    torch.manual_seed(7)
    generator = torch.get_rng_state()
    who = evaluator(accelerator, copy)
    who.load(state_tensors(training))
    who.score(images, [EvalSpec("8px", (8,))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_tensors(training).items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_tensors(copy).items())
    assert training.training
    assert torch.equal(torch.get_rng_state(), generator)


def test_training_state_is_what_is_evaluated_when_it_was_loaded(accelerator: Accelerator, images: ImageReader):
    fresh, trained = multi_view(), multi_view()
    torch.nn.init.zeros_(trained.model.head.weight)
    torch.nn.init.zeros_(trained.model.head.bias)
    who = evaluator(accelerator, fresh)
    who.load(state_tensors(trained))
    assert who.score(images, [EvalSpec("8px", (8,))])["8px"]["loss"] == pytest.approx(np.log(CLASSES), rel=1e-6)


def test_a_latency_is_that_of_one_image_and_draws_nothing_when_a_forward_takes_a_known_time(
    accelerator: Accelerator, images: ImageReader, monkeypatch: pytest.MonkeyPatch
):
    """20 ms for each image and size."""
    model, counts = multi_view(), []
    forward = model.forward

    def slow(*views: Tensor) -> list[Tensor]:
        counts.append(len(views[0]))
        time.sleep(0.02 * len(views) * len(views[0]))
        return forward(*views)

    monkeypatch.setattr(model, "forward", slow)
    generators, timed = torch.get_rng_state(), evaluator(accelerator, model)
    small, both = timed.latency_ms([EvalSpec("8px", (8,)), EvalSpec("both", SIZES)]).values()
    assert 20 <= small < 1000  # in ms, however slow the machine is
    assert 40 <= both < 1000
    assert {*counts} == {1}
    seconds = timed.seconds(EvalSpec("8px", (8,)), 4, 0.0)
    assert len(seconds) == 5  # at the least, after those that warm up
    assert min(seconds) >= 0.08
    assert torch.equal(torch.get_rng_state(), generators)
