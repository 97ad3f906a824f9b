"""Cross-checks of arguments, for flags before heavy imports and for Python callers. Free of torch.

All raise InputError that names the command-line flags.
"""

from collections.abc import Sequence
from pathlib import Path

from toolkit.config.choices import check_ascending
from toolkit.config.data_roots import is_url
from toolkit.system.errors import InputError
from toolkit.system.places import expanded


def check_cascade(sizes: Sequence[int] | None, confidence: float | None) -> None:
    if sizes is not None and len(sizes) < 2:
        given = ",".join(map(str, sizes))
        raise InputError(f"--cascade {given}: needs two sizes or more, such as 64,224; for one size take --scales")
    check_ascending("--cascade", sizes)
    if sizes is None and confidence is not None:
        raise InputError(f"--confidence {confidence:g} would be ignored: it needs --cascade")


def check_evaluate(
    scales: Sequence[int] | None, cascade: Sequence[int] | None, confidence: float | None, max_loss: float | None
) -> None:
    check_ascending("--scales", scales)
    check_cascade(cascade, confidence)
    if max_loss is not None and (cascade is None or confidence is not None):
        raise InputError(f"--max-loss {max_loss:g} would be ignored: it needs --cascade without --confidence")


def check_compare(runs: Sequence[Path | str], scales: Sequence[int] | None) -> None:
    """Check the runs to compare, the baseline first."""
    check_ascending("--scales", scales)
    if len(runs) < 2:
        raise InputError("one run only: name another to compare it with, such as RUN OTHER")
    places = [str(run).rstrip("/") if is_url(str(run)) else expanded(run).resolve() for run in runs]
    if twice := [run for i, run in enumerate(runs) if places[i] in places[:i]]:
        raise InputError(f"{twice[0]} is given twice: a run is compared with others")


def check_columns(data_root: str | None, label_column: str | None, hf_config: str | None) -> dict[str, str]:
    """The given settings of how other data than that of the run is read; raises InputError without such data."""
    given = {"label_column": label_column, "hf_config": hf_config}
    chosen = {name: value for name, value in given.items() if value is not None}
    for name, value in chosen.items():
        if data_root is None:
            raise InputError(f"--{name.replace('_', '-')} {value} would be ignored: it needs --data-root")
    return chosen


def check_predict(
    paths: Sequence[str], scales: Sequence[int] | None, cascade: Sequence[int] | None, confidence: float | None
) -> None:
    check_ascending("--scales", scales)
    check_cascade(cascade, confidence)
    if cascade is not None and scales is not None:
        raise InputError("--scales would be ignored with --cascade: drop one of them")
    if not paths:
        raise InputError("PATH is missing: name images, or folders of them, after RUN")


def check_output(output: str, overwrite: bool) -> None:
    """Check the output file of predictions; `-` is standard output."""
    if is_url(output):
        raise InputError(f"--output {output}: must be a local file, not a URL")
    if output != "-" and not output.endswith((".csv", ".jsonl")):
        raise InputError(f"--output {output}: must end in .csv or .jsonl")
    if output == "-" and overwrite:
        raise InputError("--overwrite would be ignored: it needs --output")
