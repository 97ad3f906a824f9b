"""The commands and the code of README and docs, and which commands no test runs as they stand."""

import fnmatch
import re

from tests.conftest import ROOT
from toolkit.__main__ import ENTRIES

# The pattern of a command: why it is not run, and what is tested instead.
EXCEPTIONS = {
    "toolkit plan *": "tests/recipes/test_measured_plan.py does, on few images",
    "make [!d]*": "minutes, and among them this very suite: its rules are looked up (make -n)",
    "python benchmarks/*": "minutes to hours",
    "python3 -m venv *": "installs packages from an index, as any checkout's tests have done before",
    "*/gcp_tpu.yaml *": "needs torch_xla: tests/xla/test_xla.py runs it",
    "* s3://BUCKET/*": "needs a bucket: tests/faults/test_lost_machines.py trains in one",
    "pip install *": "installs packages from an index: that the extra exists is looked up",
    "wandb *": "needs an account and its servers: tests/recipes/test_sweeps.py does what an agent does",
    "toolkit dashboard *": "needs an account: tests/recipes/test_dashboards.py runs it without one",
    "tensorboard *": "runs until it is stopped: tests/recipes/test_dashboards.py reads what it shows",
    "trackio *": "runs until it is stopped: tests/recipes/test_dashboards.py reads what it shows",
    "python serve.py *": "runs until it is stopped: tests/recipes/test_tutorial.py starts and stops it",
    "curl *": "asks that server, as tests/recipes/test_tutorial.py does",
    "* alternating.py": "tests/recipes/test_strategy_guide.py runs it",
    "python tests/*": "writes a page that this test compares with the code",
}
# What a command in a sentence begins with.
PROGRAMS = (
    "accelerate",
    "torchrun",
    "python",
    "python3",
    "pip",
    "make",
    "wandb",
    "curl",
    "tensorboard",
    "trackio",
    "toolkit",
)
NAMES_ONLY = {
    "accelerate launch",
    "accelerate config",
    *(f"toolkit {entry.words}" for entry in ENTRIES),
}  # no commands: their arguments are missing
FORM = re.compile(r"^toolkit .*(\b(RUN|DATA|OTHER)\b|\.\.\.)")  # no command: a name stands for what the user has
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, str]:
    """Name and text of README and of each page of docs."""
    paths = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    return {path.name: path.read_text() for path in paths}


def blocks(*languages: str) -> list[tuple[str, str]]:
    """(page, code) of the blocks in these languages, as they follow each other."""
    found = [(page, *match) for page, text in pages().items() for match in FENCED.findall(text)]
    return [(page, code) for page, language, code in found if language in languages]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line for a shell, without its comment, and of every command in a sentence."""
    lines = [(page, line) for page, code in blocks("bash") for line in code.replace("\\\n", " ").splitlines()]
    found = [(page, line.split("  #")[0].strip()) for page, line in lines if line.strip()]
    for page, text in pages().items():
        words = [code for code in re.findall(r"`([^`\n]+)`", FENCED.sub("", text)) if code not in NAMES_ONLY]
        found += [
            (page, code) for code in words if " " in code and code.split()[0] in PROGRAMS and not FORM.search(code)
        ]
    return list(dict.fromkeys(found))


def exception(command: str) -> str | None:
    """The pattern by which it is one."""
    return next((pattern for pattern in EXCEPTIONS if fnmatch.fnmatchcase(command, pattern)), None)
