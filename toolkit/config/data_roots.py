"""The forms of `--data-root` that are no path. Free of torch."""

SYNTHETIC = "synthetic"
CHARACTERS = "characters"
BUILT_IN = (SYNTHETIC, CHARACTERS)
HUB = "hf:"  # prefix of the name of a Hugging Face dataset
PYTHON_DATA = "data sets passed from Python: "  # stands for data sets that nobody can open by name


def is_url(path: str) -> bool:
    return "://" in path
