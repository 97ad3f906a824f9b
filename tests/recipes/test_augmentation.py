"""The flags of augmentation, under every strategy: each trains, and does what it says."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import recipe

TINY = (
    "--synthetic-count",
    "60",
    "--synthetic-size",
    "16",
    "--batch-size",
    "20",
    "--epochs",
    "2",
    "--log-with",
    "none",
)
TWO = ("--scales", "8,16")
STRATEGIES = {
    "single": ("single_scale", "--img-size", "16"),
    "progressive": ("multiscale", *TWO, "--progressive"),
    "simultaneous": ("multiscale", *TWO),
}
PIXELS = {"--rand-augment": "5", "--color-jitter": "0.4", "--random-erasing": "0.5"}  # seen in what is delivered
MIXED = {"--mixup": "0.4", "--cutmix": "1"}  # done on the device, so seen in the loss alone
Outcome = tuple[list[list[int]], list[list[int]], list[str]]


def outcome(output: Path) -> Outcome:
    """Ids and digests of each step, and the loss of each epoch."""
    lines = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    with (output / "metrics.csv").open(newline="") as file:
        losses = [row["train_loss"] for row in csv.DictReader(file)]
    return [line["ids"] for line in lines], [line["digests"] for line in lines], losses


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    folder = tmp_path_factory.mktemp("augmentation")
    known: dict[tuple[str, ...], Outcome] = {}

    def of(strategy: str, *words: str) -> Outcome:
        if (strategy, *words) not in known:
            name, *more = STRATEGIES[strategy]
            output = folder / str(len(known))
            assert recipe(name)([*TINY, *more, *words, "--record-samples", "--output-dir", str(output)]) == 0
            known[strategy, *words] = outcome(output)
        return known[strategy, *words]

    return of


@pytest.mark.parametrize("flag", [*PIXELS, *MIXED])
@pytest.mark.parametrize(
    "strategy", [pytest.param(name, marks=[pytest.mark.slow] * (name != "simultaneous")) for name in STRATEGIES]
)
def test_a_flag_changes_what_is_learned_from_and_nothing_else_when_given(trained, strategy: str, flag: str):
    ids, digests, losses = trained(strategy)
    more_ids, more_digests, more_losses = trained(strategy, flag, {**PIXELS, **MIXED}[flag])
    assert more_ids == ids
    assert (more_digests != digests) == (flag in PIXELS)
    assert len(more_losses) == 2
    assert all(more != loss for more, loss in zip(more_losses, losses, strict=True))


REFUSED = [
    (
        ("--rand-augment", "5", "--num-workers", "0"),
        "--num-workers 0: --rand-augment, --color-jitter and --transform draw from global",
    ),
    (("--color-jitter", "0.3", "--num-workers", "0"), "need a worker process: give 1 or more"),
    (
        ("--mixup", "0.4", "--batch-size", "15"),
        "15 images per step over 1 process(es) make micro-batches of 15, an odd",
    ),
    (
        ("--cutmix", "1", "--device-batch-size", "5"),
        "20 images per step over 1 process(es) make micro-batches of 5, an odd",
    ),
    (("--rand-augment", "11"), "--rand-augment 11"),
    (("--random-erasing", "1.5"), "--random-erasing 1.5"),
    (("--mixup", "-1"), "--mixup -1"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_a_flag_is_refused_in_one_line_when_it_cannot_work(capsys, tmp_path: Path, words, told: str):
    name, *more = STRATEGIES["simultaneous"]
    assert recipe(name)([*TINY, *more, *words, "--output-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert told in error
    assert not (tmp_path / "run").exists()
