"""What a finished run's best model says of images: a row of CSV or JSON lines for each, as soon as it is known.

Folders are taken with all that is under them, hidden files left out. An image that cannot be read, or a folder that
cannot be listed, has its reason in the column error and no label. Names stand in CSV as they are: a spreadsheet may
compute those that begin with =, +, - or @, so import them there as text, or write JSON lines.

Without flags the run's largest size is used; of several --scales the probabilities are averaged; --cascade starts small
and goes up only while the top probability is below --confidence, and the column size tells where it ended. The compute
that this saves is told at the end; recipes/evaluate.py RUN --cascade tells it with the accuracy lost on labeled data.

Exit code: 0 done, also if some images cannot be read; 2 none can be, or a flag is wrong; 130 stopped by Ctrl-C, the
rows written so far are whole.

Example: python recipes/predict.py RUN photos/ --cascade 64,112,224 --confidence 0.9 --output photos.csv
"""

import sys
from collections.abc import Sequence

from toolkit.config.cli import parse_section
from toolkit.config.tool_settings import Predict
from toolkit.system import console
from toolkit.system.errors import InputError, printable
from toolkit.system.exit_codes import INTERRUPTED, exit_code
from toolkit.system.host import is_main_process
from toolkit.tools.prediction_rows import refuse_existing


def predict_from(argv: Sequence[str] | None) -> int:
    flags = parse_section(argv, "predict.py", __doc__, Predict, "run", rest="paths")
    if is_main_process():
        refuse_existing(flags.output, flags.overwrite)

    from toolkit.tools.predict import predict  # heavy imports come after parsing

    summary = predict(**dict(flags))
    if is_main_process() and not summary.closed:
        for line in summary.lines():
            console.say(printable(line), sys.stderr)
    if summary.none_read:
        raise InputError(f"none of the {summary.bad} images can be read; the first: {summary.first_error}")
    return INTERRUPTED if summary.stopped else 0


def main(argv: Sequence[str] | None = None) -> int:
    codes: list[int] = []
    return exit_code(lambda: codes.append(predict_from(argv))) or codes[0]


if __name__ == "__main__":
    sys.exit(main())
