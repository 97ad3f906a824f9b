"""Checks the plain arguments of a tool by the section that describes its flags, for callers from Python."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

from pydantic import TypeAdapter, ValidationError

from toolkit.config import tool_settings
from toolkit.config.base import Section, explain
from toolkit.system.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


def checked(section_name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: arguments that a section of `tool_settings` has are as its flags must be, else InputError.

    What the caller leaves at its default is not looked at.
    """
    section: type[Section] = getattr(tool_settings, section_name)

    def decorate(tool: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(tool)

        @functools.wraps(tool)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            for name, value in bound.arguments.items():
                if name in section.model_fields and value is not signature.parameters[name].default:
                    bound.arguments[name] = _valid(section, name, value)
            return tool(*bound.args, **bound.kwargs)

        return call

    return decorate


def _valid(section: type[Section], name: str, value: Any) -> Any:
    field = section.model_fields[name]
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InputError(explain(error, name)) from None
