"""Rebuild report.html of a run from the files in its directory, for instance after an update.

Example: toolkit report runs/multiscale-resnet18-20260101-120000
"""

import sys
from collections.abc import Sequence

from toolkit.config.cli import parse_section
from toolkit.config.tool_settings import Report
from toolkit.system import console
from toolkit.system.exit_codes import exit_code


def report_from(argv: Sequence[str] | None) -> None:
    flags = parse_section(argv, "toolkit report", __doc__, Report, "run")

    from toolkit.tools.report import report  # heavy imports come after parsing

    console.say(report(flags.run, errors_on=flags.errors_on).text, sys.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: report_from(argv))
