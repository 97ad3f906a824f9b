"""Check a data set before money is spent on it: every image of every split is read and decoded, by all cores.

Told are images that cannot be used (unreadable, empty, truncated, damaged, too large), copies across splits (leak), in
train where validation images are to be drawn from it (would leak) or under two labels (contradiction), classes missing
or extra in a split; and, as harmless, other copies within a split, content of another format than the name says, and
files that are no images by their names or in no class folder.

Exit code: 0 the data is usable as it is; 2 it is not, or a flag is wrong. A written manifest does not change it.

Example: python recipes/scan.py DATA --write-manifest
"""

import sys
from collections.abc import Sequence

from toolkit.config.cli import parse_section
from toolkit.config.tool_settings import Scan
from toolkit.system import console
from toolkit.system.errors import InputError
from toolkit.system.exit_codes import exit_code
from toolkit.system.host import is_main_process


def scan_from(argv: Sequence[str] | None) -> None:
    flags = parse_section(argv, "scan.py", __doc__, Scan, "data")

    from toolkit.tools.scan import scan  # heavy imports come after parsing
    from toolkit.tools.scan_outputs import verdict

    console.start(main=True)
    report = scan(**dict(flags))
    if report.serious():
        raise InputError(verdict(report))


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: scan_from(argv)) if is_main_process() else 0  # a launcher's other processes are not needed


if __name__ == "__main__":
    sys.exit(main())
