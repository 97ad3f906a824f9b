"""The former name of `toolkit report`, for this release."""

import sys

from toolkit.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
