"""What the scales of a step learn from each other's predictions: pure functions, in float32 under any precision.

Teachers are detached, so that nothing but the labels trains them. A form returns one value per class of each image,
N x ..., which its sum over classes and mean over images reduces to a loss.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.config.choices import CONSISTENCY_FORMS, CONSISTENCY_TEACHERS, ConsistencyForm, ConsistencyTeacher
from toolkit.strategies.base import BoundTask, Loss, Step
from toolkit.system.errors import InputError

RAMP_START = 0.1  # share of the phase; before it the rate warms up, and the teachers know too little
ALPHA_CLIP = 5.0  # largest ratio of the student's probability to the teacher's
DKD_TARGET, DKD_OTHERS = 1.0, 2.0
IMPOSSIBLE = -1e4  # logarithm of a probability of 0 in float32
LARGEST_LOG_RATIO = 30.0
LEAST_DEVIATION = 1e-3  # of logits: a head that begins at 0 gives equal ones
OF_LOGITS = ("mse",)  # forms that know no probabilities


@dataclass(frozen=True)
class Teaching:
    """How the scales of a step teach each other.

    `share` of the loss of a taught scale comes from its teachers, the rest from the labels. `ramp`: the share grows
    linearly from 0 at a tenth of the phase (PS-KD, arXiv:2006.12000). `gate`: only where the teacher is right.
    `teacher`: each "larger" scale, or the "mean" of the logits of all scales, which teaches the largest too.
    """

    form: ConsistencyForm = "kl"
    share: float = 0.0
    ramp: bool = True
    gate: bool = False
    teacher: ConsistencyTeacher = "larger"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in CONSISTENCY_FORMS:
            raise InputError(f"--consistency {self.form}: one of {', '.join(CONSISTENCY_FORMS)}")
        if self.teacher not in CONSISTENCY_TEACHERS:
            raise InputError(f"--consistency-teacher {self.teacher}: one of {', '.join(CONSISTENCY_TEACHERS)}")
        if not 0 <= self.share <= 1:
            raise InputError(f"--consistency-share {self.share:g}: a share, 0 to 1")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"--consistency-temperature {self.temperature:g}: above 0")
        if self.form in OF_LOGITS and (self.gate or self.temperature != 1):
            flag = "--consistency-gate" if self.gate else f"--consistency-temperature {self.temperature:g}"
            raise InputError(f"{flag} would be ignored by --consistency {self.form}, which compares logits: drop it")

    def __str__(self) -> str:
        options = [f"T {self.temperature:g}"] if self.temperature != 1 else []
        options += ["mean teacher"] * (self.teacher == "mean") + ["gated"] * self.gate
        options += ["ramped"] * self.ramp
        return f"{self.form} consistency, share {self.share:g}" + (f" ({', '.join(options)})" if options else "")

    def share_at(self, progress: float) -> float:
        """The share at `progress`, the share of the phase's steps that are over."""
        return self.share * max(0.0, (progress - RAMP_START) / (1 - RAMP_START)) if self.ramp else self.share

    def teachers(self, logits: Sequence[Tensor]) -> list[list[Tensor]]:
        """The teachers of each scale; `logits`: in ascending order of size."""
        known = [scale_logits.detach() for scale_logits in logits]
        if self.teacher == "mean":
            return [[torch.stack([x.float() for x in known]).mean(0)]] * len(known)
        return [known[place + 1 :] for place in range(len(known))]

    def disagreement(self, teacher: Tensor, student: Tensor, targets: Tensor, task: BoundTask) -> Tensor:
        """The mean loss of a student, N x C logits like its teacher's; `targets` as `task.loss` takes them.

        The mean is over images, and over classes where each has a probability of its own, as that of `task.loss` is.
        """
        values = CONSISTENCY[self.form](teacher, student, targets, task, self.temperature)
        if self.gate:
            right = task.log_probabilities(teacher).argmax(-1) == task.true_class(targets)
            values = values * right[..., None]
        return self.temperature**2 * values.sum() / values[..., 0].numel()


def taught_loss(logits: Sequence[Tensor], targets: Tensor, task: BoundTask, teaching: Teaching, step: Step) -> Loss:
    """Mean over scales of (1 - share) x loss of the labels + share x mean loss of the teachers; 1 x without teachers.

    So every scale has the same weight, whatever the share (RS-Nets, arXiv:2007.00193, gives small scales more).
    """
    losses = [task.loss(scale_logits, targets) for scale_logits in logits]
    parts = {f"loss/{size}px": loss for size, loss in zip(step.sizes, losses, strict=True)}
    share = teaching.share_at(step.progress)
    if share == 0 or len(logits) == 1:
        return Loss(torch.stack(losses).mean(), parts)
    taught, mixed = [], []
    for loss, student, teachers in zip(losses, logits, teaching.teachers(logits), strict=True):
        if teachers:
            apart = torch.stack([teaching.disagreement(teacher, student, targets, task) for teacher in teachers]).mean()
            taught.append(apart)
            loss = (1 - share) * loss + share * apart
        mixed.append(loss)
    return Loss(torch.stack(mixed).mean(), {**parts, "consistency": torch.stack(taught).mean()})


def consistency(logits: Sequence[Tensor], form: ConsistencyForm, targets: Tensor, task: BoundTask) -> Tensor:
    """Mean over all pairs (larger, smaller) of logits, in ascending order of size; of an image the sum over classes."""
    pairs = [
        CONSISTENCY[form](large.detach(), small, targets, task, 1.0).sum() / len(small)
        for small, large in combinations(logits, 2)
    ]
    return torch.stack(pairs).mean()


def kl(teacher: Tensor, student: Tensor, targets: Tensor, task: BoundTask, temperature: float) -> Tensor:
    """Terms of KL(teacher || student) of the predicted probabilities."""
    known, learned = (task.log_probabilities(logits / temperature) for logits in (teacher, student))
    return F.kl_div(learned, known, reduction="none", log_target=True)


def mse(teacher: Tensor, student: Tensor, targets: Tensor, task: BoundTask, temperature: float) -> Tensor:
    """Squared errors of the logits, divided by the number of classes."""
    return F.mse_loss(student.float(), teacher.float(), reduction="none") / student.shape[1]


def js(teacher: Tensor, student: Tensor, targets: Tensor, task: BoundTask, temperature: float) -> Tensor:
    """Terms of the Jensen-Shannon divergence in nats, at most log 2 for one label."""
    sides = [task.log_probabilities(logits / temperature) for logits in (teacher, student)]
    middle = torch.logsumexp(torch.stack(sides), 0) - torch.log(torch.tensor(2.0))
    return torch.stack([F.kl_div(middle, side, reduction="none", log_target=True) for side in sides]).mean(0)


def standardized(teacher: Tensor, student: Tensor, targets: Tensor, task: BoundTask, temperature: float) -> Tensor:
    """KL of standardized logits, mean 0 and standard deviation 1 over the classes (LSKD, arXiv:2403.01427).

    Two classes always standardize to the same two values, so that there is nothing to learn but their order.
    """
    known, learned = (
        (logits.float() - logits.float().mean(1, keepdim=True))
        / logits.float().std(1, keepdim=True).clamp(min=LEAST_DEVIATION)
        for logits in (teacher, student)
    )
    return kl(known, learned, targets, task, temperature)


def dkd(teacher: Tensor, student: Tensor, targets: Tensor, task: BoundTask, temperature: float) -> Tensor:
    """Decoupled KL: of the true class against the rest, and DKD_OTHERS x within the rest (arXiv:2203.08679)."""
    known, learned = (task.log_probabilities(logits / temperature) for logits in (teacher, student))
    true = task.true_class(targets)[..., None]
    whether, within = [], []
    for values in (learned, known):
        rest = values.scatter(-1, true, IMPOSSIBLE)
        total = torch.logsumexp(rest, -1, keepdim=True)
        whether.append(torch.cat([values.gather(-1, true), total], -1))
        within.append(rest - total)
    parts = [F.kl_div(pair[0], pair[1], reduction="none", log_target=True) for pair in (whether, within)]
    return torch.cat([DKD_TARGET * parts[0], DKD_OTHERS * parts[1]], -1)


def alpha(teacher: Tensor, student: Tensor, targets: Tensor, task: BoundTask, temperature: float) -> Tensor:
    """The larger of two alpha divergences, alpha 1 (KL) and -1, the second clipped (AlphaNet, arXiv:2102.07954).

    KL punishes what the student thinks unlikely and the teacher does not, alpha = -1 the reverse.
    """
    known, learned = (task.log_probabilities(logits / temperature) for logits in (teacher, student))
    apart = (known - learned).detach().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    ratio, q = apart.exp(), learned.detach().exp()
    inverse = (1 / ratio).clamp(max=ALPHA_CLIP)
    values, weights = (ratio * apart * q, 0.5 * (inverse - 1) * q), (-ratio * q, inverse * q)
    first = values[0].sum(-1, keepdim=True) >= values[1].sum(-1, keepdim=True)
    gradient = torch.where(first, *weights) * learned
    return torch.where(first, *values) + gradient - gradient.detach()


CONSISTENCY: dict[ConsistencyForm, Callable[[Tensor, Tensor, Tensor, BoundTask, float], Tensor]] = {
    "kl": kl,
    "mse": mse,
    "js": js,
    "standardized": standardized,
    "dkd": dkd,
    "alpha": alpha,
}
