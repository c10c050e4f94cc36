"""The command line. ``ilmconvert MODEL`` is short for ``ilmconvert convert MODEL``."""

from __future__ import annotations

import click

from ilmconvert._constants import __version__
from ilmconvert.cli._exit import EXIT_CODES
from ilmconvert.cli._group import CommandGroup

#: Every command: its name, the module with a click command of that name, and what it does. A command's module is
#: imported when the command runs, so that help needs neither torch nor a model library.
COMMANDS: dict[str, tuple[str, str]] = {
    "convert": ("ilmconvert.cli.convert:convert", "Convert a model and write a checkpoint (the default command)."),
    "plan": ("ilmconvert.cli.plan:plan", "Show what each norm layer would be converted to."),
    "inspect": ("ilmconvert.cli.inspect:inspect", "Show the metadata of a converted checkpoint."),
    "list": ("ilmconvert.cli.list:list_", "List the models that can be converted."),
    "finetune": ("ilmconvert.cli.finetune:finetune", "Fine-tune a model or checkpoint with a recipe."),
    "evaluate": ("ilmconvert.cli.evaluate:evaluate", "Measure accuracy, calibration and agreement on images."),
    "calibrate": ("ilmconvert.cli.calibrate:calibrate", "Fit inexact layers to their source on unlabelled images."),
    "collapse": ("ilmconvert.cli.collapse:collapse", "Turn constant ILM Norms into plain GroupNorms."),
    "undo": ("ilmconvert.cli.undo:undo", "Give a checkpoint the norms of its source back."),
    "robustness": ("ilmconvert.cli.robustness:robustness", "Compare a bounded model with its source on corruptions."),
    "verify": ("ilmconvert.cli.verify:verify", "Compare a checkpoint with its source, layer by layer."),
    "report": ("ilmconvert.cli.report:report", "Show the results of a fine-tuning run, also as HTML."),
    "export": ("ilmconvert.cli.export:export", "Write a checkpoint as ONNX, torch.export, hub folder or delta."),
    "apply": ("ilmconvert.cli.apply:apply", "Make a checkpoint from a delta and its source model."),
    "sweep": ("ilmconvert.cli.sweep:sweep", "Check the conversion on every model of the libraries."),
    "completion": ("ilmconvert.cli.completion:completion", "Print the completion script for bash, zsh or fish."),
    "demo": ("ilmconvert.cli.demo:demo", "Convert a real ImageNet network and classify photographs."),
}


@click.group(
    cls=CommandGroup,
    table=COMMANDS,
    epilog="\b\nExit codes:\n" + "\n".join(f"  {code:<4} {text}" for code, text in EXIT_CODES.items()),
    invoke_without_command=True,
    options_metavar="",
    subcommand_metavar="MODEL [OPTIONS] | COMMAND ...",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Convert pretrained BatchNorm and GroupNorm networks to ILM Norm without changing what they compute.

    MODEL is a name of timm (resnet50) or torchvision (torchvision/resnet50), hf-hub:ORG/NAME or local-dir:PATH.
    `ilmconvert convert --help` shows the options.

    \b
    Examples:
      ilmconvert resnet50
      ilmconvert plan efficientnet_b0
      ilmconvert --config long-run.yaml verify resnet50-ilm_gn.safetensors
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
