"""A run of an example strategy with dropout: python resumable.py NAME OUTPUT trains it, for a test to kill."""

import sys
from pathlib import Path

from examples import EPOCHS, EXAMPLES

from toolkit import Settings

STEPS_PER_EPOCH = 16


def settings(output: Path) -> Settings:
    return Settings(
        synthetic_size=32,
        synthetic_count=130,  # two images are left out of each epoch
        batch_size=8,
        epochs=EPOCHS,
        dropout_rate=0.2,
        log_with="none",
        record_samples=True,
        output_dir=output,
    )


if __name__ == "__main__":
    from toolkit import train

    train(settings(Path(sys.argv[2])), EXAMPLES[sys.argv[1]])
