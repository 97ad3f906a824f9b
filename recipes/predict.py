"""The former name of `toolkit predict`, for this release."""

import sys

from toolkit.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
