"""Parts of settings: strict sections, lists, key=value pairs, and error messages. Imports no torch."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from toolkit.config.other_tools import answer
from toolkit.config.urls import local, without_secret
from toolkit.config.yaml_values import fit, kinds_of, meaning, read_value
from toolkit.system.errors import InputError, nearest


def split_numbers(value: Any) -> Any:
    if isinstance(value, list | tuple) and any(isinstance(part, bool) for part in value):
        raise ValueError("must be whole numbers")
    if isinstance(value, int):
        return (value,)
    return tuple(re.split(r"\s*,\s*|\s+", value.strip())) if isinstance(value, str) else value


def split_pairs(value: Any) -> Any:
    """["output_stride=8"] -> {"output_stride": "8"}, each value as it was written; raises ValueError."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, list | tuple):
        raise ValueError("expected key=value pairs")
    broken = [pair for pair in value if not isinstance(pair, str) or "=" not in pair]
    if broken:
        raise ValueError(f"{broken[0]!r} is not of the form key=value")
    pairs = [pair.split("=", 1) for pair in value]
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    try:
        return {key: read_value(text) for key, text in pairs}
    except yaml.YAMLError:
        raise ValueError("a value is not valid YAML") from None


def _meant(value: Any) -> Any:
    return meaning(split_pairs(value))


Numbers = Annotated[tuple[PositiveInt, ...], BeforeValidator(split_numbers), Field(min_length=1)]
Folder = Annotated[Path, BeforeValidator(local)]  # or a file; a shell leaves the ~ in --output-dir=~/run
KeyValues = Annotated[dict[str, Any], BeforeValidator(_meant)]


def frozen(value: Any) -> Any:
    """A value of a YAML file as a field of a frozen dataclass holds it: lists as tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def hint(name: str, known: Iterable[str]) -> str:
    """What to write for an unknown flag or setting, by its meaning in other tools or else its spelling; or empty."""
    names = [*known]
    meant = answer(name, {"--" + known_name.removeprefix("--").replace("_", "-") for known_name in names})
    return f"; {meant}" if meant else nearest(name, names)


class Section(BaseModel):
    """A group of settings: frozen, and strict about names. A wrong value raises InputError with one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # headings of `--help`, for a recipe of one section only
    elsewhere: ClassVar[Mapping[str, str]] = {}  # names that are no settings -> where they belong

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(explain(error)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise InputError(f"{name} cannot be changed: settings are frozen; make new ones with {name}={value!r}")

    @model_validator(mode="before")
    @classmethod
    def _known_and_fitting(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        unknown = [key for key in values if key not in cls.model_fields]
        if unknown:
            name = unknown[0]
            where = f": {cls.elsewhere[name]}" if name in cls.elsewhere else hint(name, cls.model_fields)
            raise InputError(f"there is no setting {name!r}{where}")
        return {name: fit(value, cls.model_fields[name].annotation) for name, value in values.items()}


def switches(*sections: type[Section]) -> set[str]:
    """The settings that are true or false."""
    fields = {name: field for section in sections for name, field in section.model_fields.items()}
    return {name for name, field in fields.items() if bool in kinds_of(field.annotation)}


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
    "string_type": "must be text; leave it out for the default",
    "int_type": "must be a whole number; leave it out for the default",
    "float_type": "must be a number; leave it out for the default",
    "literal_error": "must be one of {expected}",
    "too_short": "must have {min_length} or more",
    "tuple_type": "must be a list",
}


def explain(error: ValidationError, name: str = "settings") -> str:
    """The first of pydantic's errors, as one line that names the flag; `name`: of a value that is checked alone."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return str(cause)
    alone = isinstance(first["loc"][0], int) if first["loc"] else True  # the place in a list, or none
    flag = name if alone else "--" + str(first["loc"][0]).replace("_", "-")
    rule = RULES.get(first["type"])  # other messages may hold braces of the user's
    text = rule.format(**first.get("ctx", {})) if rule else first["msg"].removeprefix("Value error, ")
    return f"{flag} {without_secret(str(first['input']))}: {text}"
