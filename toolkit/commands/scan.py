"""Check a data set before you pay for a GPU: read and decode every image of every split, on all cores.

Reports images that cannot be used (unreadable, empty, truncated, damaged, too large); copies across splits (leak), in
train if validation will be held out from it (would leak), or under two labels (contradiction); classes missing or
extra in a split; and gray of more than 8 bits that --range leaves few levels. Reports as harmless: other copies within
a split, content in another format than the file extension, bytes astray before a JPEG's pixels, classes without images
in a split for evaluation, system files, and files without an image extension or outside the class folders. With --task
multilabel it counts the labels of each class, and images without labels.

Exit code: 0 the data is usable unchanged; 2 it is not, or a flag is wrong. --write-manifest does not change the code.

Example: toolkit scan DATA --write-manifest
"""

import sys
from collections.abc import Sequence

from toolkit.config.cli import parse_section
from toolkit.config.tables import CLASSIFICATION
from toolkit.config.tool_settings import Scan
from toolkit.system import console
from toolkit.system.errors import InputError
from toolkit.system.exit_codes import exit_code
from toolkit.system.host import is_main_process


def scan_from(argv: Sequence[str] | None) -> None:
    flags = parse_section(argv, "toolkit scan", __doc__, Scan, "data")

    from toolkit.tools.scan import scan  # heavy imports come after parsing
    from toolkit.tools.scan_outputs import verdict

    console.start(main=True)
    report = scan(**dict(flags))
    console.say(report.text.rstrip("\n"), sys.stdout)
    console.say(f"wrote     {report.folder}", sys.stdout)
    if flags.write_manifest:
        manifest = f"{report.folder}/manifest"
        task = "" if flags.task == CLASSIFICATION else f" with --task {flags.task}"
        console.say(f"wrote     {manifest}: --data-root on it{task} trains without what was found", sys.stdout)
    if report.serious():
        raise InputError(verdict(report))


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: scan_from(argv)) if is_main_process() else 0  # other processes of a launcher exit
