"""The settings of a recipe: what one is, what it accepts, and the error of a wrong one. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from ilmconvert.errors import RecipeError

T = TypeVar("T")
_KEY = "setting"
_MOST_LISTED = 12


@dataclass(frozen=True)
class Setting:
    """What is known of one field of a recipe.

    Attributes:
        section: the heading it stands under.
        text: what it does, with its unit.
        choices: the only values of a string.
        least: the smallest number.
        most: the largest number.
        above: the number is to be greater than this.
        also: other option names on the command line, those of timm's train.py.
    """

    section: str
    text: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    also: tuple[str, ...] = ()


def setting(default: T, section: str, text: str, **rules: Any) -> T:
    """A dataclass field with its default, section, description and rules (those of :class:`Setting`)."""
    result: T = field(default=default, metadata={_KEY: Setting(section, text, **rules)})
    return result


def settings_of(cls: type) -> dict[str, tuple[Field[Any], Setting, Any]]:
    """Every described field of a dataclass by name: the field, its setting, its type."""
    hints = get_type_hints(cls)
    return {f.name: (f, f.metadata[_KEY], hints[f.name]) for f in fields(cls) if _KEY in f.metadata}


def describe(cls: type) -> str:
    """The fields of a dataclass as the part ``Attributes:`` of a docstring, by section."""
    lines, section = ["", "    Attributes:"], ""
    for name, (f, about, _) in settings_of(cls).items():
        if about.section != section:
            section = about.section
            lines += ["", f"        *{section}*", ""]
        lines.append(f"        {name}: {about.text} Default {f.default!r}.")
    return "\n".join([*lines, ""])


def checked(name: str, value: Any, about: Setting, hint: Any) -> Any:
    """The value as the type of its field.

    Integers stand for floats, lists for tuples, ``"none"`` for None where that can be, and strings for numbers: YAML
    reads ``1e-4`` as a string.

    Raises:
        RecipeError: another type, no choice of the field, or out of range.
    """
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if (value is None or value == "none") and NoneType in kinds:
        return None
    kind = next(k for k in kinds if k is not NoneType)
    if get_args(kind):
        return _pair(name, value, about)
    if "no" in about.choices and value is False:
        value = "no"  # YAML reads a bare no as false
    value = _number(value, kind)
    if type(value) is not kind:
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[kind]
        optional = " or null" if NoneType in kinds else ""
        raise RecipeError(f"{name} has to be {wanted}{optional}, not {value!r}")
    _check_range(name, value, about)
    return value


def _number(value: Any, kind: type) -> Any:
    if kind not in (int, float) or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if kind is float and isinstance(value, int):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _pair(name: str, value: Any, about: Setting) -> tuple[float, float]:
    numbers = [_number(v, float) for v in value] if isinstance(value, list | tuple) else []
    if len(numbers) != 2 or not all(isinstance(v, float) for v in numbers):
        raise RecipeError(f"{name} has to be two numbers, not {value!r}")
    for number in numbers:
        _check_range(name, number, about)
    if numbers[0] > numbers[1]:
        raise RecipeError(f"{name}: the first number is the smaller one, not {value!r}")
    return numbers[0], numbers[1]


def _check_range(name: str, value: Any, about: Setting) -> None:
    if about.choices and value not in about.choices:
        raise RecipeError(f"{name} is one of {', '.join(about.choices)}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{name} has to be finite, not {value}")
    if about.least is not None and value < about.least:
        raise RecipeError(f"{name} has to be at least {about.least:g}, not {value:g}")
    if about.most is not None and value > about.most:
        raise RecipeError(f"{name} has to be at most {about.most:g}, not {value:g}")
    if about.above is not None and value <= about.above:
        raise RecipeError(f"{name} has to be more than {about.above:g}, not {value:g}")


def unknown(kind: str, name: object, known: Mapping[str, Any] | list[str]) -> RecipeError:
    """The error for a name that isn't there, with those that are near, or all of few."""
    import difflib

    near = difflib.get_close_matches(str(name), list(known), n=3)
    if near:
        cure = f"did you mean {' or '.join(near)}?"
    elif len(known) <= _MOST_LISTED:
        cure = f"known are {', '.join(known)}"
    else:
        cure = "ilmconvert finetune --help lists them"
    return RecipeError(f"unknown {kind} {name!r}; {cure}")
