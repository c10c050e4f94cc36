"""The group of all commands: loads a command when it is used, takes any other first word for a model."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from ilmconvert.cli._common import library_warnings
from ilmconvert.cli._complete import models
from ilmconvert.cli._exit import EXIT_INTERRUPTED, Interrupted, fail, quiet_broken_pipe
from ilmconvert.cli._global import verbosity, with_global_options
from ilmconvert.errors import ILMConvertError, one_line

DEFAULT_COMMAND = "convert"


class CommandGroup(click.Group):
    """Finds commands in a table, takes any other first word for a model, and reports errors in one line.

    Args:
        table: names of commands, each with ``"module:attribute"`` and a line of help.
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table
        with_global_options(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return with_global_options(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        commands = [CompletionItem(n, help=text) for n, (_, text) in self.table.items() if n.startswith(incomplete)]
        return commands + (models(ctx, None, incomplete) if incomplete else [])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.with_command(ctx, args))

    def with_command(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments, with the default command before a word that is no command."""
        first = self._first_word(ctx, args)
        if first < len(args) and args[first] not in self.table:
            # A model is the only word that convert takes: two words mean that the first was to be a command.
            near = difflib.get_close_matches(args[first], self.table, n=1)
            if near and len(args) > first + 1 and not args[first + 1].startswith("-"):
                raise click.UsageError(f"no such command {args[first]!r}; did you mean {near[0]}?", ctx)
            args = [*args[:first], DEFAULT_COMMAND, *args[first:]]
        return args

    def _first_word(self, ctx: click.Context, args: Sequence[str]) -> int:
        """Where the command or model stands: behind the group's own options and their values."""
        own = {name: option for option in self.get_params(ctx) for name in option.opts}
        index = 0
        while index < len(args):
            name, equals, _ = args[index].partition("=")
            option = own.get(name)
            if option is None:
                return index
            assert isinstance(option, click.Option)
            index += 1 if option.is_flag or equals else 2
        return index

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run, and exit with one of :data:`ilmconvert.cli._exit.EXIT_CODES`."""
        extra["standalone_mode"] = False
        if os.environ.get("NO_COLOR"):
            extra.setdefault("color", False)
        try:
            with library_warnings():
                code = super().main(args, *rest, **extra)
            with quiet_broken_pipe():
                sys.stdout.flush()
        except click.Abort:
            fail("interrupted", EXIT_INTERRUPTED)
        except Interrupted as error:
            fail(error.format_message(), error.exit_code)
        except click.ClickException as error:
            fail(error.format_message())
        except (ILMConvertError, OSError) as error:
            fail(error)
        except Exception as error:  # a fault of this package; the traceback is there for whoever reports it
            reason = one_line(error)[:300] or "no message"
            fail(f"unexpected {type(error).__name__}: {reason}; add --verbose to see where, and report it")
        sys.exit(code if isinstance(code, int) else 0)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with quiet_broken_pipe():  # of --help; click itself would end with 1, which has a meaning here
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with quiet_broken_pipe():
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception:
            if verbosity() > 0:
                traceback.print_exc()
            raise
