"""Train from weights that are good already: `toolkit train finetune` as a script."""

import sys
from collections.abc import Sequence

from toolkit.commands import train_finetune


def main(argv: Sequence[str] | None = None) -> int:
    return train_finetune.main(argv, prog="finetune.py")


if __name__ == "__main__":
    sys.exit(main())
