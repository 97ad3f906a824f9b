"""docs/api.md and a table of docs/migration.md say what the code says, and the latter names flags that exist.

`python tests/unit/test_api_page.py` writes the signatures and tables of both pages anew.
"""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

import toolkit
from toolkit.config import tool_settings
from toolkit.config.base import Section
from toolkit.config.cli import OTHER
from toolkit.config.other_tools import OTHER_TOOLS
from toolkit.config.scales import Scales
from toolkit.config.settings import SECTIONS, Settings
from toolkit.config.words import ALIASES, flag_of
from toolkit.strategies import base
from toolkit.strategies.base import Strategy

DOCS = Path(__file__).parents[2] / "docs"
CONTRACT = ("Budget", "Phase", "Step", "EvalSpec", "at_size", "Loss", "NormPolicy")
SIGNATURE = re.compile(r"### `(\w+)`\n\n```text\n(.*?)```", re.DOTALL)
TABLE = re.compile(r"<!-- (settings|methods|contract|others) -->\n(.*?)<!-- end -->", re.DOTALL)


def signature(name: str, owner: Any) -> str:
    """`name(arguments) -> result` without the modules that types come from; `class name(base)` of what has none."""
    if owner in (Strategy, Settings, toolkit.Dashboard, toolkit.Source, toolkit.Index) or (
        isinstance(owner, type) and issubclass(owner, Exception)
    ):
        return f"class {name}({owner.__base__.__name__})"
    text = str(inspect.signature(owner)).removesuffix(" -> None")
    return name + re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", text.replace("'", '"')).replace("(self, ", "(").replace(
        "(self)", "()"
    )


def first_line(owner: Any) -> str:
    return (inspect.getdoc(owner) or "").split("\n")[0]


def settings_table() -> str:
    lines = []
    for section in SECTIONS:
        lines += [f"**{section.__doc__}**", "", "| name | default | meaning |", "|---|---|---|"]
        for name in section.__annotations__:
            field = section.model_fields[name]
            default = "see there" if field.default is PydanticUndefined else repr(field.default).replace("'", '"')
            lines += [f"| `{name}` | `{default}` | {(field.description or '').replace('|', '/')} |"]
        lines += [""]
    return "\n".join(lines)


def methods_table() -> str:
    names = [name for name in vars(Strategy) if getattr(getattr(Strategy, name), "__isabstractmethod__", False)]
    rows = [
        f"| `{signature(name, getattr(Strategy, name))}` | {first_line(getattr(Strategy, name))} |" for name in names
    ]
    return "\n".join(["| method | meaning |", "|---|---|", *rows, ""])


def contract_table() -> str:
    rows = [f"| `{signature(name, getattr(base, name))}` | {first_line(getattr(base, name))} |" for name in CONTRACT]
    return "\n".join(["| name | meaning |", "|---|---|", *(row.replace(" | None", " \\| None") for row in rows), ""])


def others_table() -> str:
    """Flags of other tools, and ours."""
    lines = []
    for heading, rows in OTHER_TOOLS.items():
        lines += [f"**{heading}**", "", "| there | here |", "|---|---|"]
        for names, ours in rows.items():
            theirs = ", ".join(f"`{'-' * min(len(name), 2)}{name}`" for name in names.split())
            lines += [f"| {theirs} | {ours} |"]
        lines += [""]
    return "\n".join(lines)


PAGES = ("api.md", "migration.md")
TABLES = {"settings": settings_table, "methods": methods_table, "contract": contract_table, "others": others_table}


def renewed(page: str) -> str:
    """The page with what the code says now."""
    page = SIGNATURE.sub(lambda m: f"### `{m[1]}`\n\n```text\n{signature(m[1], getattr(toolkit, m[1]))}\n```", page)
    return TABLE.sub(lambda m: f"<!-- {m[1]} -->\n{TABLES[m[1]]()}<!-- end -->", page)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_says_what_the_code_says(name: str):
    page = (DOCS / name).read_text()
    assert page == renewed(page), "python tests/unit/test_api_page.py writes it anew"


def test_the_page_is_renewed_when_it_is_stale():
    page = (DOCS / "api.md").read_text()
    for old, new in (("recipe: str", "recipes: str"), ("batch_size: int", "batch: int"), ("`epochs` |", "`epoch` |")):
        assert page.replace(old, new) != page
        assert renewed(page.replace(old, new)) == page


def test_every_public_name_stands_on_the_page():
    page = (DOCS / "api.md").read_text()
    assert set(re.findall(r"^### `(\w+)`", page, re.MULTILINE)) == set(toolkit._HOMES)
    assert {name for page in PAGES for name, _ in TABLE.findall((DOCS / page).read_text())} == set(TABLES)


def real_flags() -> set[str]:
    """Of all recipes."""
    sections = [kind for kind in vars(tool_settings).values() if isinstance(kind, type) and issubclass(kind, Section)]
    names = {name for section in (Settings, Scales, *sections) for name in section.model_fields} | set(OTHER)
    flags = {f"--{name.replace('_', '-')}" for name in names} | {
        spelled for name in ALIASES for spelled in (f"--{name}", flag_of(name))
    }
    return flags | {f"--no-{flag[2:]}" for flag in flags} | {"--help", "--config_file"}


@pytest.mark.parametrize("page", ["migration.md", "strategies.md"])
def test_flags_of_ours_that_the_pages_name_are_real(page: str):
    text = (DOCS / page).read_text()
    ours = (
        [line.rsplit("|", 2)[1] for line in text.splitlines() if line.startswith("|")]
        if page == "migration.md"
        else [text]
    )
    named = {flag for part in ours for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", part)}
    assert len(named) > 15
    assert named - real_flags() - {"--nproc-per-node", "--quiet"} == set()


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / name).write_text(renewed((DOCS / name).read_text()))
