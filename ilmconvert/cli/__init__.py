"""The command line. ``ilmconvert MODEL`` is short for ``ilmconvert convert MODEL``."""

from __future__ import annotations

import difflib
import errno
import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from ilmconvert import __version__
from ilmconvert.cli._common import EXIT_ERROR, library_warnings, one_line
from ilmconvert.errors import ILMConvertError

DEFAULT_COMMAND = "convert"

#: Every command: its name, the module with a click command of that name, and what it does. A command's module is
#: imported when the command runs, so that help needs neither torch nor a model library.
COMMANDS: dict[str, tuple[str, str]] = {
    "convert": ("ilmconvert.cli.convert:convert", "Convert a model and write a checkpoint (the default command)."),
    "plan": ("ilmconvert.cli.plan:plan", "Show what would become of every norm layer; write nothing."),
    "inspect": ("ilmconvert.cli.inspect:inspect", "Show what a converted checkpoint holds."),
    "list": ("ilmconvert.cli.list:list_", "List models that can be converted."),
    "finetune": ("ilmconvert.cli.finetune:finetune", "Fine-tune a model or checkpoint with a recipe."),
    "evaluate": ("ilmconvert.cli.evaluate:evaluate", "Accuracy, calibration and agreement on pictures."),
    "calibrate": ("ilmconvert.cli.calibrate:calibrate", "Bring a moments start closer to its source by pictures."),
    "collapse": ("ilmconvert.cli.collapse:collapse", "Turn constant ILM Norms into plain GroupNorms."),
    "robustness": ("ilmconvert.cli.robustness:robustness", "Compare a bounded checkpoint on corrupted pictures."),
    "verify": ("ilmconvert.cli.verify:verify", "Compare a checkpoint with its source, layer by layer."),
    "report": ("ilmconvert.cli.report:report", "Show what a fine-tuning run came to, as one HTML file."),
    "export": ("ilmconvert.cli.export:export", "Write a checkpoint as ONNX, torch.export, hub folder or delta."),
    "apply": ("ilmconvert.cli.apply:apply", "Make a checkpoint of a delta and its base."),
    "sweep": ("ilmconvert.cli.sweep:sweep", "Check the conversion on every model of the libraries."),
    "demo": ("ilmconvert.cli.demo:demo", "Convert a real ImageNet network and classify photographs."),
}


class CommandGroup(click.Group):
    """Finds commands in ``COMMANDS``, takes any other first word for a model, and reports errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in COMMANDS and args[0] not in own:
            # A model is the only word that convert takes: two words mean that the first was to be a command.
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if near and len(args) > 1 and not args[1].startswith("-"):
                raise click.UsageError(f"no such command {args[0]!r}; did you mean {near[0]}?", ctx)
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run, and exit: 0, or 2 after one line ``Error: ...`` on stderr."""
        extra["standalone_mode"] = False
        try:
            with library_warnings():
                code = super().main(args, *rest, **extra)
        except click.Abort:
            _fail("interrupted")
        except click.ClickException as error:
            _fail(error.format_message())
        except ILMConvertError as error:
            _fail(error)
        except OSError as error:
            if error.errno == errno.EPIPE:
                sys.exit(1)
            _fail(error)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: object) -> None:
    click.echo(f"Error: {one_line(message)}", err=True)
    sys.exit(EXIT_ERROR)


@click.group(
    cls=CommandGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    options_metavar="",
    subcommand_metavar="MODEL [OPTIONS] | COMMAND ...",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Convert pretrained BatchNorm and GroupNorm networks to ILM Norm without changing what they compute.

    MODEL is a name of timm (resnet50) or torchvision (torchvision/resnet50), hf-hub:ORG/NAME or local-dir:PATH.
    `ilmconvert convert --help` shows the options.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
