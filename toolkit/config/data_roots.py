"""The forms of `--data-root` that are no path. Free of torch."""

from toolkit.config.tables import TABLES
from toolkit.system.errors import InputError
from toolkit.system.places import expanded

SYNTHETIC = "synthetic"
CHARACTERS = "characters"
BUILT_IN = (SYNTHETIC, CHARACTERS)
HUB = "hf:"  # prefix of the name of a Hugging Face dataset
PYTHON_DATA = "data sets passed from Python: "  # stands for data sets that nobody can open by name


def is_url(path: str) -> bool:
    return "://" in path


def refuse_if_missing(data_root: str) -> None:
    """Raise InputError for a path that is not there; called before slow imports.

    Names with a prefix, such as `hf:NAME`, and sources of the user's own are left to the run itself.
    """
    own = any(not str(entry).startswith("toolkit.") for entry in TABLES["source"].values())
    if not (data_root in BUILT_IN or ":" in data_root or own or expanded(data_root).exists()):
        raise InputError(f"--data-root {data_root}: no such folder")
