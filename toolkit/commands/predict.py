"""Predict images with a finished run's best model: one row of CSV or JSON Lines per image, written as soon as it is
predicted.

Folders are searched recursively, without hidden files. An image that cannot be read, or a folder that cannot be listed,
has the reason in the column error and no label. The CSV holds file names unchanged: a spreadsheet may evaluate names
that begin with =, +, - or @ as formulas, so import them as text, or write JSON Lines.

By default the run's largest size is used. With several --scales, probabilities are averaged. --cascade starts at the
first size and moves up only while the top probability is below --confidence; the column size holds the size of the
prediction. The compute saved is reported at the end; `toolkit evaluate RUN --cascade` also reports the accuracy lost,
on labeled data.

Exit code: 0 done, even if some images cannot be read; 2 no image can be read, or a flag is wrong; 130 stopped by
Ctrl-C, all rows written so far are complete.

Example: toolkit predict RUN photos/ --cascade 64,112,224 --confidence 0.9 --output photos.csv
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
    flags = parse_section(argv, "toolkit predict", __doc__, Predict, "run", rest="paths")
    if is_main_process():
        refuse_existing(flags.output, flags.overwrite)

    from toolkit.tools.predict import predict  # heavy imports come after parsing

    summary = predict(model=flags.model_from, **flags.model_dump(exclude={"model_from"}))
    if is_main_process() and not summary.closed:
        for line in summary.lines():
            console.say(printable(line), sys.stderr)
    if summary.none_read:
        raise InputError(f"none of the {summary.bad} images can be read; the first: {summary.first_error}")
    return INTERRUPTED if summary.stopped else 0


def main(argv: Sequence[str] | None = None) -> int:
    codes: list[int] = []
    return exit_code(lambda: codes.append(predict_from(argv))) or codes[0]
