"""Train at one image size: `toolkit train single` as a script."""

import sys
from collections.abc import Sequence

from toolkit.commands import train_single


def main(argv: Sequence[str] | None = None) -> int:
    return train_single.main(argv, prog="single_scale.py")


if __name__ == "__main__":
    sys.exit(main())
