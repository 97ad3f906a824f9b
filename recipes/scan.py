"""The former name of `toolkit scan`, for this release."""

import sys

from toolkit.commands.scan import main

if __name__ == "__main__":
    sys.exit(main())
