"""The former name of `toolkit dashboard`, for this release."""

import sys

from toolkit.commands.dashboard import main

if __name__ == "__main__":
    sys.exit(main())
