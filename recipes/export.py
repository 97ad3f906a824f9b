"""The former name of `toolkit export`, for this release."""

import sys

from toolkit.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
