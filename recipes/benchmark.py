"""The former name of `toolkit benchmark`, for this release."""

import sys

from toolkit.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
