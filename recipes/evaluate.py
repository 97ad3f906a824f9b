"""The former name of `toolkit evaluate`, for this release."""

import sys

from toolkit.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
