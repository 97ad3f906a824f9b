"""Compare finished runs with a baseline on the same images: the difference of top-1 at every size that both report,
with a 95% interval, and of balanced accuracy and macro F1.

The predictions that the runs saved are used; what is missing is evaluated. better: the interval is above 0; not worse:
above -1 point; worse: below 0; else undecided. It covers the choice of images only: another seed gives other runs.

Exit code: 0 done; 2 a flag or a run is wrong, or the runs have other classes or images.

Example: toolkit compare RUN OTHER --scales 64,112
"""

import sys
from collections.abc import Sequence

from toolkit.config.cli import parse_section
from toolkit.config.tool_settings import Compare
from toolkit.system import console
from toolkit.system.exit_codes import exit_code
from toolkit.system.host import is_main_process


def compare_from(argv: Sequence[str] | None) -> None:
    flags = parse_section(argv, "toolkit compare", __doc__, Compare, "run", rest="others")

    from toolkit.tools.compare import compare  # heavy imports come after parsing

    comparison = compare(flags.run, *flags.others, **flags.model_dump(exclude={"run", "others"}))
    if is_main_process():
        console.say(comparison.text, sys.stdout)
        if flags.output_dir is not None:
            console.say(f"wrote     {flags.output_dir}: comparison.txt, comparison.json", sys.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: compare_from(argv))
