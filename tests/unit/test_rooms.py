"""The rooms of the package: each says what it is, imports only from lower floors, and has no file too long to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = ("system", "config", "strategies", "data", "models", "runs", "training", "tools", "commands")  # lowest first
PARTS_OF_DATA = ("images", "sources", "loading")
LONG = 300  # lines
IN_ROOT = {"__init__.py", "__main__.py", "contract.py"}  # contract.py re-exports `strategies.base` for a release


def imported(source: str) -> Iterator[list[str]]:
    """The parts of every module of the package that is imported, as `from toolkit.a import b` names toolkit.a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1:] for name in names if name.startswith("toolkit."))


def upward(place: tuple[str, ...], source: str) -> list[str]:
    """Imports of a module at `place`, such as ("data", "images", "decode"), that lead to a higher floor."""
    found = []
    for target in imported(source):
        if target[0] in FLOORS and FLOORS.index(target[0]) > FLOORS.index(place[0]):
            found.append(".".join(target))
        both_in_parts = place[0] == target[0] == "data" and len(place) > 2 and target[1] in PARTS_OF_DATA
        if both_in_parts and PARTS_OF_DATA.index(target[1]) > PARTS_OF_DATA.index(place[1]):
            found.append(".".join(target))
    return found


def modules(room: str) -> list[Path]:
    return sorted((ROOT / "toolkit" / room).rglob("*.py"))


def test_the_package_is_its_rooms():
    assert {path.name for path in (ROOT / "toolkit").glob("*.py")} == IN_ROOT
    folders = {path.name for path in (ROOT / "toolkit").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(FLOORS)


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_only_from_lower_floors(room: str):
    for path in modules(room):
        place = path.relative_to(ROOT / "toolkit").with_suffix("").parts
        assert upward(place, path.read_text()) == [], path


@pytest.mark.parametrize(
    ("place", "source"),
    [
        (("models", "ema"), "from toolkit.runs.checkpoint import Store"),
        (("data", "loading", "sampler"), "def f():\n    import toolkit.training.loop"),
        (("config", "cli"), "from toolkit import tools"),
        (("data", "images", "decode"), "from toolkit.data.sources.index import Index"),
    ],
)
def test_an_import_that_leads_upward_is_found(place: tuple[str, ...], source: str):
    assert upward(place, source)


def test_every_room_says_what_it_is_and_what_does_not_belong_there():
    for folder in {path.parent for room in FLOORS for path in modules(room)}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert text, f"{folder} has no docstring"
        if folder.parent == ROOT / "toolkit":
            assert "Never" in text, f"{folder} does not say what does not belong there"


def test_long_files_are_printed(capsys: pytest.CaptureFixture[str]):
    lengths = {path: len(path.read_text().splitlines()) for room in FLOORS for path in modules(room)}
    with capsys.disabled():
        for path, lines in lengths.items():
            if lines > LONG:
                print(f"\n{path.relative_to(ROOT)}: {lines} lines, more than {LONG}: worth a look")
    assert max(lengths.values()) < 2 * LONG
