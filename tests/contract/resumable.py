"""A run of an example strategy, regularized: python resumable.py NAME OUTPUT trains it, for a test to kill.

NAME+AUGMENTED: with every augmentation there is.
"""

import sys
from pathlib import Path

from examples import EPOCHS, EXAMPLES

from toolkit import Settings, Strategy

STEPS_PER_EPOCH = 16
AUGMENTED = "-augmented"
AUGMENTATION = {"rand_augment": 5, "color_jitter": 0.3, "random_erasing": 0.5, "mixup": 0.4, "cutmix": 1.0}


def strategy(name: str) -> Strategy:
    return EXAMPLES[name.removesuffix(AUGMENTED)]


def settings(name: str, output: Path) -> Settings:
    return Settings(
        synthetic_size=32,
        synthetic_count=130,  # two images are left out of each epoch
        batch_size=8,
        epochs=EPOCHS,
        dropout_rate=0.2,
        label_smoothing=0.1,
        log_with="none",
        record_samples=True,
        output_dir=output,
        **(AUGMENTATION if name.endswith(AUGMENTED) else {}),
    )


if __name__ == "__main__":
    from toolkit import train

    train(settings(sys.argv[1], Path(sys.argv[2])), strategy(sys.argv[1]))
