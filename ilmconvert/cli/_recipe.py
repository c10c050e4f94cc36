"""An option for every field of a recipe, and help that lists options under headings."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource

from ilmconvert.errors import RecipeError
from ilmconvert.finetune.field_checks import Setting, checked, settings_of
from ilmconvert.finetune.recipe import RECIPES, Recipe, get_recipe, is_sgd

Command = TypeVar("Command", bound=Callable[..., Any])

#: The value of an option that was given as ``none``: click takes None for one that wasn't given.
UNSET = object()
_OTHER = "Other"


class SectionOption(click.Option):
    """An option that help lists under a heading."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionCommand(click.Command):
    """A command whose help has a heading for every section of options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in (p for p in self.get_params(ctx) if isinstance(p, click.Option)):
            record = option.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(option, "section", _OTHER), []).append(record)
        for section, records in sorted(sections.items(), key=lambda item: item[0] == _OTHER):
            with formatter.section(section):
                formatter.write_dl(records)


class Value(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """The value of a recipe's field, checked as the recipe checks it; ``none`` where the field can be null."""

    def __init__(self, field: str, about: Setting, hint: Any) -> None:
        self.field, self.about, self.hint = field, about, hint
        self.name = field

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            result = checked(self.field, value, self.about, self.hint)
        except RecipeError as error:
            raise click.UsageError(f"--{_kebab(str(error))}", ctx) from error
        return UNSET if result is None else result


def section_option(section: str, *names: str, **settings: Any) -> Callable[[Command], Command]:
    """``click.option`` under a heading."""
    return click.option(*names, cls=SectionOption, section=section, **settings)


def recipe_options(command: Command) -> Command:
    """An option for every field, None unless it is given."""
    for name, (_, about, hint) in reversed(settings_of(Recipe).items()):
        flags = [name, _flag(name, hint), *about.also]
        settings: dict[str, Any] = {"default": None, "help": f"{about.text}  [{_default(name)}]"}
        if hint is not bool:
            kind = next(k for k in (get_args(hint) or (hint,)) if k is not NoneType)
            pair = get_args(hint) and NoneType not in get_args(hint)
            settings |= {"metavar": "X X" if pair else "|".join(about.choices) or _METAVARS[kind]}
            settings |= {"nargs": 2, "type": float} if pair else {"type": Value(name, about, hint)}
        command = section_option(f"Recipe: {about.section.lower()}", *flags, **settings)(command)
    return command


def overrides(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that were given as options, on the command line or in the file of ``--config``."""
    given = {name: options[name] for name in settings_of(Recipe) if options[name] is not None}
    if _asks_for_other_rates(click.get_current_context()):
        del given["lr"]
    if options["recipe_name"] is not None:
        given["name"] = options["recipe_name"]
    return {name: None if value is UNSET else value for name, value in given.items()}


def _asks_for_other_rates(context: click.Context) -> bool:
    """Whether the command line asks for a rate that the file's ``lr`` would hide, or for an optimizer of other ones."""
    source = context.get_parameter_source
    if source("lr") is not ParameterSource.DEFAULT_MAP:
        return False
    if source("opt") is ParameterSource.COMMANDLINE:
        before = (context.default_map or {}).get("opt") or get_recipe(context.params["recipe"]).opt
        if is_sgd(before) != is_sgd(context.params["opt"]):
            return True
    return source("lr_base") is ParameterSource.COMMANDLINE


#: Options that aren't of the run itself: they show something, or say how to go on.
_NOT_OF_THE_RUN = ("recipe", "recipe_name", "resume", "dry_run", "show_config", "find_batch_size", "as_json")


def run_file_of(context: click.Context, recipe: Recipe) -> str:
    """The file that ``--config`` reads, of the command that is running: its model, its options and the recipe."""
    from ilmconvert.finetune.run_file import run_file

    sections: dict[str, dict[str, Any]] = {}
    fields = settings_of(Recipe)
    for parameter in context.command.params:
        name = parameter.name or ""
        if parameter.expose_value and name not in fields and name not in _NOT_OF_THE_RUN:
            heading = getattr(parameter, "section", "Run")
            long = next((opt for opt in parameter.opts if opt.startswith("--")), name)
            sections.setdefault(heading, {})[long.lstrip("-")] = context.params.get(name)
    return run_file(sections, recipe)


_METAVARS = {int: "N", float: "X", str: "NAME"}


def _flag(name: str, hint: Any) -> str:
    if hint is not bool:
        return f"--{_kebab(name)}"
    opposite = name.removeprefix("no_") if name.startswith("no_") else f"no_{name}"
    return f"--{_kebab(name)}/--{_kebab(opposite)}"


def _kebab(name: str) -> str:
    field, space, rest = name.partition(" ")
    return field.replace("_", "-") + space + rest


def _default(name: str) -> str:
    values = {key: getattr(recipe, name) for key, recipe in RECIPES.items()}
    usual = getattr(Recipe(), name)
    others = [f"{key}: {_shown(value)}" for key, value in values.items() if value != usual]
    return f"default: {_shown(usual)}" + "".join(f"; {other}" for other in others)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return " ".join(f"{part:.3g}" for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
