"""Parts of settings: strict sections, lists, key=value pairs, YAML, and error messages. Imports no torch."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from toolkit.system.errors import InputError


def split_numbers(value: Any) -> Any:
    if isinstance(value, int):
        return (value,)
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _split_pairs(value: Any) -> Any:
    """["output_stride=8"] -> {"output_stride": 8}; values have their YAML types."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, list | tuple):
        raise ValueError("expected key=value pairs")
    broken = [pair for pair in value if "=" not in pair]
    if broken:
        raise ValueError(f"{broken[0]!r} is not of the form key=value")
    try:
        return {key: yaml.safe_load(text) for key, text in (pair.split("=", 1) for pair in value)}
    except yaml.YAMLError:
        raise ValueError("a value is not valid YAML") from None


Numbers = Annotated[tuple[PositiveInt, ...], BeforeValidator(split_numbers), Field(min_length=1)]
KeyValues = Annotated[dict[str, Any], BeforeValidator(_split_pairs)]


def frozen(value: Any) -> Any:
    """A value of a YAML file as a field of a frozen dataclass holds it: lists as tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the known name closest to a mistyped one; empty if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


class Section(BaseModel):
    """A group of settings: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # headings of `--help`, for a recipe of one section only

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, values: Any) -> Any:
        unknown = [key for key in values if key not in cls.model_fields] if isinstance(values, dict) else []
        if unknown:
            raise InputError(f"there is no setting {unknown[0]!r}{nearest(unknown[0], cls.model_fields)}")
        return values


# What a value must be, by pydantic's error type.
RULES = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be {le:g} or less",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "literal_error": "must be one of {expected}",
}


def explain(error: ValidationError) -> str:
    """The first of pydantic's errors, as one line that names the flag."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return str(cause)
    flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "settings"
    rule = RULES.get(first["type"])  # other messages may hold braces of the user's
    text = rule.format(**first.get("ctx", {})) if rule else first["msg"].removeprefix("Value error, ")
    return f"{flag} {first['input']}: {text}"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; raises InputError naming the file."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected `name: value` lines")
    return values


def to_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=120)
