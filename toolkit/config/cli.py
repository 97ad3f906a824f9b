"""The command line of a recipe: flags from settings. Imports no torch, so that `--help` is fast."""

import contextlib
import io
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict, TypeVar, get_args

import tyro
from pydantic.fields import FieldInfo

from toolkit.config import settings
from toolkit.config.base import Section, hint, switches
from toolkit.config.flag_types import help_of, lists_of, metavar, optional, text_flag, words_flag
from toolkit.config.own_fields import fit_own_fields, move_own_fields
from toolkit.config.planning import Planning, make_planning
from toolkit.config.scales import Scales, make_scales
from toolkit.config.settings import SECTIONS, Settings
from toolkit.config.tables import TABLES, import_module, import_modules, import_named
from toolkit.config.urls import readable, without_secret
from toolkit.config.words import (
    ALIASES,
    bare_path,
    flag_of,
    joined,
    name_of,
    plain_switches,
    renamed,
    spaced,
    stray,
    unknown_flag,
)
from toolkit.config.yaml_values import read_written
from toolkit.system import console
from toolkit.system.errors import InputError

S = TypeVar("S", bound=Section)
DEFAULT = re.compile(r"\((default|unset): [^)]*\)$")  # the end of a setting's description
RULE = re.compile("[─╰╯+-]*")  # a line of a box, or an empty one
NARROWEST = 40  # columns of --help
KEY_VALUES = [
    name for name, field in {**Settings.model_fields, **Scales.model_fields}.items() if "dict" in str(field.annotation)
]
SHARED = frozenset({"scales", "eval_scales"})  # fields that all multi-scale strategies have
# Fields that name code of the user's own: their flags, unlike a --config file, allow importing it.
CODE = {"model_from": "--model-from", "transform": "--transform"}


@dataclass(frozen=True)
class Command:
    """A parsed command line: settings, the given flags of the strategy, and what to do with them."""

    settings: Settings
    scales: Mapping[str, Any]
    dry_run: bool
    benchmark: bool
    lr_find: bool
    planning: Planning


def _flag(field: FieldInfo, default: str | None = None) -> Any:
    """The tyro type of one setting. Values stay text: pydantic parses flags like YAML, with the same messages.

    `default`: what `--help` says of it, if not what the setting itself has.
    """
    text = help_of(field) if default is None else DEFAULT.sub(f"(default: {default})", help_of(field))
    if field.annotation is bool or bool in get_args(field.annotation):
        return optional(bool, text)
    if "dict" in str(field.annotation):
        return optional(words_flag("KEY=VALUE"), text)
    if isinstance(field.json_schema_extra, dict):
        entries = TABLES[field.json_schema_extra["seam"]]  # type: ignore[index]
        return optional(text_flag("{" + ",".join(entries) + "}"), text)
    return optional(text_flag(metavar(field.annotation)), text)


def _group(section: type[Section], names: Sequence[str], defaults: Mapping[str, str] = {}) -> Any:
    flags = {name: _flag(section.model_fields[name], defaults.get(name)) for name in names}
    return TypedDict(section.__name__, flags, total=False)  # type: ignore[operator]


IMPORT = "modules of your own to import first, such as one that registers a scheduler (unset: none)"
OTHER = {
    "config": (text_flag("FILE"), "YAML file of settings; flags win (unset: none)"),
    "import": (words_flag("MODULE"), IMPORT),
    "dry_run": (bool, "print the plan and stop (default: off)"),
    "benchmark": (
        bool,
        "measure throughput and memory at every scale first, what bounds them, and write benchmark.json (default: off)",
    ),
    "lr_find": (
        bool,
        "choose the learning rate first: short trainings at five rates or more around --learning-rate (default: off)",
    ),
    "measure": (bool, "with --dry-run: time steps on this machine, predict time and cost (default: off)"),
    "goal": (
        text_flag("{one-size,every-size}"),
        "with --measure: compare strategies for the largest size or for every size (default: every-size; one-size for "
        "`train single`)",
    ),
    "time_budget": (
        text_flag("TIME"),
        "with --measure: find the epochs that fit into e.g. 90s, 1h30m, 2 (hours) (unset: any)",
    ),
    "cost_budget": (
        text_flag("X"),
        "with --measure: find the epochs that this buys at --hourly-cost, above 0 (unset: any)",
    ),
}


def training_grammar(scale_flags: Sequence[str], defaults: Mapping[str, str] = {}) -> Any:
    groups = {
        section.__name__.lower(): _group(section, tuple(section.__annotations__), defaults) for section in SECTIONS
    }
    groups["scales"] = _group(Scales, scale_flags, defaults)
    other = {name: optional(kind, text) for name, (kind, text) in OTHER.items()}
    groups["other"] = TypedDict("Other", other, total=False)  # type: ignore[operator]
    return TypedDict("Flags", groups)  # type: ignore[operator]


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """What tyro ignores: NO_COLOR (no-color.org), and that its layout does not end in a terminal of one column."""
    before = {name: os.environ.get(name) for name in ("TERM", "COLUMNS")}
    try:
        if os.environ.get("NO_COLOR"):
            os.environ["TERM"] = "dumb"
        if shutil.get_terminal_size().columns < NARROWEST:
            os.environ["COLUMNS"] = str(NARROWEST)
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def _read(words: Sequence[str], recipe: str, description: str | None, grammar: Any) -> tuple[Any, list[str]]:
    """Parse `words` into the flags of the grammar and the unknown words; tyro's boxed errors become one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), _terminal():
            return tyro.cli(
                grammar,
                config=(tyro.conf.OmitArgPrefixes,),
                prog=recipe,
                description=description,
                args=words,
                return_unknown_args=True,
                compact_help=False,
            )
    except BrokenPipeError:  # `--help | head`
        console.silence(sys.stdout)
        sys.exit()
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise InputError(_plain(box.getvalue())) from None


def _plain(box: str) -> str:
    """The first paragraph of tyro's box, in plain words where a word is missing."""
    lines = [line.strip("│| ") for line in box.splitlines()[1:]]
    ruled = itertools.dropwhile(RULE.fullmatch, lines)  # in ASCII the title has lines of its own
    told = " ".join(itertools.takewhile(lambda line: not RULE.fullmatch(line), ruled))
    told = re.sub(r"^Missing value for argument '(--\S+)'\..*", r"\1 needs a value", told)
    told = re.sub(r"^Missing value for argument '(\S+)'\..*", lambda found: f"{found[1].upper()} is missing", told)
    return re.sub(r"^Missing from [^:]*: (\S+) (.*) \(required\)$", r"\1 is missing: \2", told)


def config_file(given: str) -> Path:
    """The file of --config, of a URL a copy; raises InputError."""
    try:
        place = readable(given)
    except ValueError as error:
        raise InputError(f"--config {without_secret(given)}: {error}") from None
    if isinstance(place, Path):
        return place

    from toolkit.system.url_copies import local_file  # imported here: few give a URL

    return local_file(place, "--config")


def _import_given(given: Mapping[str, Any]) -> None:
    """Import the module of each MODULE:NAME on the command line itself; one in a --config file may be a run's."""
    for name in CODE.keys() & given.keys():
        import_named(CODE[name], given[name])
    for name, value in given.items():
        extra = Settings.model_fields[name].json_schema_extra if name in Settings.model_fields else None
        seam = "strategy" if name == "strategy" else extra["seam"] if isinstance(extra, dict) else None
        if seam and ":" in value and value not in TABLES[seam]:  # type: ignore[index]
            import_module(f"--{name.replace('_', '-')}", value.partition(":")[0])


def parse(
    argv: Sequence[str] | None,
    recipe: str,
    description: str | None,
    scale_flags: Sequence[str],
    defaults: Mapping[str, str] = {},
) -> Command:
    """Parse the command line of a training recipe: flags override `--config`, which overrides defaults.

    `scale_flags`: the fields of `Scales` that the recipe has. `defaults`: what `--help` says of settings that the
    recipe fills in. Raises InputError; exits with code 0 after `--help`.
    """
    of_recipe = {name for name, (kind, _) in OTHER.items() if kind is bool}
    words = renamed(sys.argv[1:] if argv is None else argv)
    words = spaced(joined(plain_switches(words, switches(Settings, Scales) | of_recipe), KEY_VALUES), lists_of(Scales))
    groups, unknown = _read(words, recipe, description, training_grammar(scale_flags, defaults))
    known = {*Settings.model_fields, *scale_flags, "strategy"}  # every config.yaml contains its strategy
    flags = [flag_of(name) for name in sorted({*known, *OTHER})]
    if flag := unknown_flag(unknown):
        if name_of(flag) in Scales.model_fields:
            raise InputError(f"{flag} would be ignored by {recipe}: it belongs to another recipe")
        raise InputError(f"there is no flag {flag}{hint(flag, flags)}")
    given = {name: value for group in groups.values() for name, value in group.items()}
    if unknown:
        path = bare_path(unknown, words, flags)
        if given.setdefault("data_root", path) != path:
            raise InputError(f"{path}: --data-root {given['data_root']} is given too: drop one of them")
    asked = {name: given.pop(name) for name in Planning.model_fields if name in given}
    others = {name: given.pop(name, False) for name in OTHER}
    import_modules(others["import"] or ())
    _import_given(given)
    written = read_written(config_file(others["config"])) if others["config"] else {}
    written = {ALIASES.get(name, name): value for name, value in written.items()}
    values = settings.as_recorded(written) if written else {}
    values = move_own_fields(values, known)
    strange = [name for name in values if name not in known]
    if strange and strange[0] in Scales.model_fields:
        raise InputError(f"{others['config']}: {strange[0]!r} belongs to another recipe than {recipe}")
    if strange:
        raise InputError(f"{others['config']}: there is no setting {strange[0]!r}{hint(strange[0], known)}")
    strategy = "progressive" if given.get("progressive") else given.get("strategy")
    if strategy and strategy != values.get("strategy", strategy):  # flags win: the file configures another strategy
        values = {name: value for name, value in values.items() if name in SHARED or name not in Scales.model_fields}
    values = fit_own_fields({**settings.beside_flags(values, given), **given})
    chosen = {name: values.pop(name) for name in list(values) if name in Scales.model_fields}
    made = settings.make_settings(values)
    return Command(
        settings=made,
        scales=make_scales(chosen),
        dry_run=others["dry_run"],
        benchmark=others["benchmark"],
        lr_find=others["lr_find"],
        planning=make_planning(asked, made, others["dry_run"]),
    )


def section_grammar(section: type[Section], positional: str | None = None, rest: str | None = None) -> Any:
    """The tyro type of the flags and words of a command that does not train; see `parse_section`."""
    kinds = {name: kind(name.upper()) for name, kind in ((positional, text_flag), (rest, words_flag)) if name}
    shown = {name: name.upper() + " ..." * (name == rest) for name in kinds}
    described = {
        name: tyro.conf.arg(
            metavar=shown[name], help=section.model_fields[name].description, help_behavior_hint="(required)"
        )
        for name in kinds
    }
    words: dict[str, Any] = {
        name: Required[Annotated[kind, described[name], tyro.conf.Positional]] for name, kind in kinds.items()
    }
    flags = {title: _group(section, names) for title, names in section.groups.items()}
    if {"run", "data", "data_root"} & {*section.model_fields}:  # opening them may need classes of the user's own
        flags["other"] = TypedDict("Other", {"import": optional(words_flag("MODULE"), IMPORT)}, total=False)  # type: ignore[operator]
    return TypedDict(section.__name__, {**words, **flags})  # type: ignore[operator]


def parse_section(
    argv: Sequence[str] | None,
    recipe: str,
    description: str | None,
    section: type[S],
    positional: str | None = None,
    rest: str | None = None,
) -> S:
    """Parse the command line of a command that does not train.

    `positional` and `rest`: the fields set by one word without a flag, and by all further ones. Otherwise like `parse`.
    """
    grammar = section_grammar(section, positional, rest)
    given_words = plain_switches(sys.argv[1:] if argv is None else argv, switches(section))
    lists = {name: values for name, values in lists_of(section).items() if name not in (positional, rest)}
    given_words = spaced(given_words, lists, paths=rest is not None)
    names = ["--import", *(flag_of(name) for names in section.groups.values() for name in names)]
    try:
        groups, unknown = _read(given_words, recipe, description, grammar)
    except InputError:
        known = {*names, *(f"--no-{name[2:]}" for name in names)}
        unknown = [word for word in given_words if word.startswith("--") and word.split("=")[0] not in known]
        if not unknown_flag(unknown):
            raise
    if flag := unknown_flag(unknown):
        raise InputError(f"there is no flag {flag}{hint(flag, names)}")
    if unknown:
        raise InputError(stray(unknown[0], given_words))
    import_modules(groups.pop("other", {}).get("import", ()))
    given = {name: groups.pop(name) for name in (positional, rest) if name}
    for group in groups.values():
        given.update(group)
    return section(**given)
