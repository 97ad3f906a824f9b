"""Train one model for several image sizes: `toolkit train multi` as a script."""

import sys
from collections.abc import Sequence

from toolkit.commands import train_multi


def main(argv: Sequence[str] | None = None) -> int:
    return train_multi.main(argv, prog="multiscale.py")


if __name__ == "__main__":
    sys.exit(main())
