"""The defaults of fine-tuning: what suits weights that are good already, by the number of images and the model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.config.settings import Settings, make_settings
from toolkit.data.loading.python_data import open_data
from toolkit.data.sources.index import Splits
from toolkit.models.classification import Classification
from toolkit.models.ema import largest_decay
from toolkit.models.inspection import ModelPlan
from toolkit.strategies import Finish, HeadFirst, SingleScale
from toolkit.strategies.base import Budget, Strategy, Task
from toolkit.system import host
from toolkit.system.errors import InputError
from toolkit.training.parts import Parts, make_parts

STEPS, EPOCHS = 1000, (5, 30)  # optimizer steps that are enough, within these numbers of epochs
STEPS_PER_EPOCH, BATCHES = 8, (8, 64)  # at least so many, within these batch sizes; below, statistics are noisy
FEW = STEPS_PER_EPOCH * BATCHES[1]  # images; with fewer, the statistics of the weights are better than theirs
HEAD_SHARE, WARMUP_SHARE = 0.1, 0.1  # of the epochs, and of those behind the head's
# Peak rate of Adam for batches of 64 images and models of 10 M parameters; smaller models take a larger one.
RATE, RATE_WITHOUT_BATCH_NORM = 1e-3, 3e-4
MODEL, FACTORS = 1e7, (0.2, 5.0)  # parameters, and the limits of what other numbers change
LAYER_DECAY = 0.75  # of models without BatchNorm
# Share of the steps over which the moving average reaches back, and its limits in steps; never over a tenth of the run.
REACH, REACH_STEPS = 0.05, (10, 5000)
UNEVEN, POWER = 3.0, 0.5  # images of the commonest class for one of the rarest, and then the power of the weights


@dataclass(frozen=True)
class Finetuning:
    """Settings and strategy with what was not given filled in, and a line for the plan that says what."""

    settings: Settings
    strategy: Strategy
    line: str


def finetuning(settings: Settings, strategy: Strategy, head_epochs: int | None = None, **seams: Any) -> Finetuning:
    """Fill in what suits a start from trained weights, where neither settings nor strategy say otherwise.

    `head_epochs`: 0: none; unset: a tenth of the epochs, unless the strategy has a `HeadFirst` or no room for one.
    `seams`: as those of `train`, which gets them, too. Raises InputError as a run does for its data and model.
    """
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    own_model = bool(settings.model_from or seams.get("model"))
    if not (settings.weights or own_model):
        given = {"pretrained": True, **given}
    settings, parts = make_parts(make_settings(given), strategy, **seams)
    splits = open_data(settings, strategy.selection().sizes[-1], parts.data)
    filled: dict[str, Any] = {}

    def fill(name: str, value: Any) -> Any:
        """The value of a setting: the given one, else `value`."""
        return given[name] if name in given else filled.setdefault(name, value)

    images, model = len(splits.train), _model(settings, parts, splits)
    batch = fill("batch_size", _batch_size(images))
    per_epoch = max(1, images // batch)
    epochs = fill("epochs", min(max(round(STEPS / per_epoch), EPOCHS[0]), EPOCHS[1]))
    if head_epochs is None:
        from_trained = (settings.weights or settings.pretrained or own_model) and not settings.freeze
        head_epochs = _head_epochs(strategy, Budget(epochs, per_epoch * batch, batch)) if from_trained else 0
    if "schedule" not in seams:
        fill("warmup_epochs", round(WARMUP_SHARE * max(0, epochs - head_epochs), 2))
    if "adam" in settings.optimizer:
        fill("learning_rate", float(f"{_rate(model) * math.sqrt(batch / 64):.2g}"))
    if not (model.batch_norms or settings.freeze or own_model):
        fill("layer_decay", LAYER_DECAY)
    if images < FEW and batch < BATCHES[1] and model.batch_norms and _keeps_statistics(given, strategy):
        fill("freeze_bn", True)
    steps = per_epoch * epochs
    if longest := largest_decay(steps):
        reach = min(max(REACH * steps, REACH_STEPS[0]), REACH_STEPS[1])
        fill("ema_decay", round(min(1 - 1 / reach, longest), 4))
    ours = isinstance(parts.task, Classification) and "task" not in seams
    plain = settings.sampling == "plain"  # else rare classes are favored already
    if ours and plain and _are_uneven(parts.task, splits) and fill("class_weights", "inverse") != "none":
        fill("class_weights_power", POWER)
    told = filled | ({"head_epochs": head_epochs} if head_epochs else {})
    made = make_settings({**given, **filled})
    line = f"finetune  {images} images: {' '.join(_flag(name, value) for name, value in told.items())}"
    return Finetuning(made, _with_head(strategy, head_epochs), line)


def _flag(name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    return flag if value is True else f"{flag} {f'{value:g}' if isinstance(value, float) else value}"


def _batch_size(images: int) -> int:
    """A power of two that makes an epoch of at least STEPS_PER_EPOCH steps; a multiple of the processes, if need be."""
    smallest, largest = BATCHES
    batch = min(max(2 ** int(math.log2(max(1.0, images / STEPS_PER_EPOCH))), smallest), largest, images)
    return batch - batch % host.processes() or host.processes()


def _head_epochs(strategy: Strategy, budget: Budget) -> int:
    """A tenth of the epochs before a finish, for the classifier alone; 0 where the strategy has no room for them."""
    before = budget.epochs - (strategy.finish_epochs if isinstance(strategy, Finish) else 0)
    if before < 3 or _has_head(strategy):
        return 0
    head_epochs = max(1, round(HEAD_SHARE * before))
    try:
        _with_head(strategy, head_epochs).phases(budget)
    except InputError:
        return 0
    return head_epochs


def _keeps_statistics(given: Mapping[str, Any], strategy: Strategy) -> bool:
    """Whether the BatchNorm of the weights may stay: of one size, and where no flag says what of it learns."""
    one_size = isinstance(strategy.strategy if isinstance(strategy, HeadFirst) else strategy, SingleScale)
    said = any(given.get(name) for name in ("freeze", "unfreeze_from", "sync_bn"))
    return one_size and not said and bool(given.get("weights") or given.get("pretrained"))


def _has_head(strategy: Strategy) -> bool:
    return isinstance(strategy.strategy if isinstance(strategy, Finish) else strategy, HeadFirst)


def _with_head(strategy: Strategy, head_epochs: int) -> Strategy:
    """The strategy with a HeadFirst, inside of its Finish if it has one."""
    if not head_epochs:
        return strategy
    if isinstance(strategy, Finish):
        return Finish(HeadFirst(strategy.strategy, head_epochs), strategy.finish_size, strategy.finish_epochs)
    return HeadFirst(strategy, head_epochs)


def _model(settings: Settings, parts: Parts, splits: Splits) -> ModelPlan:
    sizes = sorted({size for spec in parts.strategy.eval_specs() for size in spec.sizes})
    return parts.model.plan(settings, len(splits.classes), sizes, parts.strategy.norm())


def _rate(model: ModelPlan) -> float:
    """The peak rate for batches of 64 images."""
    factor = min(max(math.sqrt(MODEL / model.parameters), FACTORS[0]), FACTORS[1])
    return factor * (RATE if model.batch_norms else RATE_WITHOUT_BATCH_NORM)


def _are_uneven(task: Task, splits: Splits) -> bool:
    """Whether the commonest class has more than UNEVEN times the images of the rarest, which has some."""
    if splits.train.labels.ndim > 1:
        return False
    counts = task.class_counts(splits.train.labels, len(splits.classes))
    return bool(0 < counts.min() * UNEVEN < counts.max())
