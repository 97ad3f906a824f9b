"""Rebuild report.html of a run from the files in its directory, for instance after an update.

Example: python recipes/report.py runs/multiscale-resnet18-20260101-120000
"""

import sys
from collections.abc import Sequence

from toolkit.config.cli import parse_section
from toolkit.config.tool_settings import Report
from toolkit.system import console
from toolkit.system.exit_codes import exit_code


def report_from(argv: Sequence[str] | None) -> None:
    flags = parse_section(argv, "report.py", __doc__, Report, "run")

    from toolkit.runs.report import write_report  # heavy imports come after parsing

    console.say(f"wrote     {write_report(flags.run, flags.errors_on)}", sys.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: report_from(argv))


if __name__ == "__main__":
    sys.exit(main())
