"""The tyro types of flags, whose values stay text, and what `--help` says of them. Imports no torch."""

from typing import Annotated, Any, Literal, NotRequired, get_args, get_origin

import tyro
from pydantic.fields import FieldInfo
from tyro.constructors import PrimitiveConstructorSpec

from toolkit.config.base import Section


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The values of a Literal, also inside an optional or a list; empty if there is none."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next(filter(None, map(choices_of, get_args(annotation))), ())


def lists_of(section: type[Section]) -> dict[str, tuple[Any, ...]]:
    """The settings that are lists -> the values that each may hold, empty for numbers."""
    lists = {name: field for name, field in section.model_fields.items() if "tuple" in str(field.annotation)}
    return {name: choices_of(field.annotation) for name, field in lists.items()}


def metavar(annotation: Any) -> str:
    """The placeholder of a flag's value in `--help`: N for a whole number, X for any number."""
    choices = choices_of(annotation)
    if choices:
        return "{" + ",".join(map(str, choices)) + "}"
    text = str(annotation)
    return next(
        (name for key, name in {"tuple": "N,N,...", "float": "X", "int": "N", "Path": "PATH"}.items() if key in text),
        "TEXT",
    )


def text_flag(metavar: str) -> Any:
    """One word, kept as text."""
    return Annotated[
        str,
        PrimitiveConstructorSpec(
            nargs=1,
            metavar=metavar,
            instance_from_str=lambda words: words[0],
            is_instance=lambda value: isinstance(value, str),
            str_from_instance=lambda value: [value],
        ),
    ]


def words_flag(metavar: str) -> Any:
    """Any number of words, kept as text."""
    return Annotated[
        tuple[str, ...],
        PrimitiveConstructorSpec(
            nargs="*",
            metavar=metavar,
            instance_from_str=tuple,
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=list,
        ),
    ]


def optional(kind: Any, help_text: str) -> Any:
    """An option that is absent from the result unless it was given."""
    return NotRequired[Annotated[kind, tyro.conf.arg(help=help_text, help_behavior_hint="")]]


def help_of(field: FieldInfo) -> str:
    """The `--help` text of a setting: its description, plus its default unless the description states it."""
    default, text = field.default, field.description or ""
    if field.annotation is bool or bool in get_args(field.annotation):
        default = "on" if default else "off"
    if "default" not in text and "unset" not in text:
        text += f" (default: {'none' if default == {} else default})"
    return text
