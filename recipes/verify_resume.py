"""The former name of `toolkit verify-resume`, for this release."""

import sys

from toolkit.commands.verify_resume import main

if __name__ == "__main__":
    sys.exit(main())
