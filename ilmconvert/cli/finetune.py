"""``ilmconvert finetune CHECKPOINT|MODEL --data DATA --recipe NAME -o DIR``."""

from __future__ import annotations

import difflib
import os
import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import model_args, print_json, progress, refuse_ignored, warn
from ilmconvert.cli._complete import models_and_files
from ilmconvert.cli._data_options import data_options, open_images, take_data_options
from ilmconvert.cli._exit import Interrupted
from ilmconvert.cli._finetune_view import bar, print_plan, print_result
from ilmconvert.cli._recipe import SectionCommand, overrides, recipe_options, run_file_of, section_option
from ilmconvert.finetune.recipe import Recipe, get_recipe

if TYPE_CHECKING:
    from ilmconvert.data.open_data import Data

BASELINES = ("train-bn", "frozen-bn", "group-norm")
_RUN, _MODEL, _DATA = "Run", "Model", "Data"
#: Where launchers note the number of a process, as accelerate looks for it.
_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")


def _split(context: click.Context, parameter: click.Parameter, value: str | None) -> float | str | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return value


@click.command(cls=SectionCommand)
@click.argument("model", required=False, metavar="CHECKPOINT|MODEL", shell_complete=models_and_files)
@section_option(_RUN, "--data", metavar="DATA", help="Folder with train/ and val/, of class folders, or torch/NAME.")
@section_option(
    _RUN,
    "--recipe",
    default="full",
    show_default=True,
    metavar="NAME|FILE.yaml",
    help="norm, full, distill, anneal, freeze-then-full, first-norm, anneal-part, or a file. "
    "Every field is an option below, too.",
)
@section_option(_RUN, "--recipe-name", metavar="NAME", help="Name of the recipe in reports.  [default: the recipe's]")
@section_option(_RUN, "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="The run folder.")
@section_option(_RUN, "--resume", is_flag=True, help="Continue the run in DIR, exactly where it stopped.")
@section_option(_RUN, "--dry-run", is_flag=True, help="Build everything, show what would be run, write nothing.")
@section_option(_RUN, "--show-config", is_flag=True, help="Print what would be run as YAML for --config, and exit.")
@section_option(_RUN, "--find-batch-size", is_flag=True, help="Print the largest batch size that fits, and exit.")
@section_option(
    _RUN, "--log-with", multiple=True, metavar="NAME", help="tensorboard, wandb or trackio. Repeatable; none: no log."
)
@section_option(_RUN, "--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@section_option(
    _MODEL, "--num-classes", type=click.IntRange(min=2), metavar="N", help="Replace the head by one of so many classes."
)
@section_option(
    _MODEL,
    "--weights",
    default="default",
    show_default=True,
    metavar="default|none|FILE",
    help="Weights of a source model: the library's, random ones, or a file.",
)
@section_option(
    _MODEL,
    "--model-arg",
    "model_args",
    multiple=True,
    metavar="KEY=VALUE",
    callback=model_args,
    help="Argument for the constructor of a source model, as in in_chans=1; a JSON value. Repeatable.",
)
@section_option(
    _MODEL,
    "--teacher",
    metavar="CHECKPOINT|MODEL",
    help="Teacher for distillation.  [default: the network as it starts]",
)
@section_option(
    _MODEL,
    "--baseline",
    "baselines",
    multiple=True,
    type=click.Choice(BASELINES),
    help="Also train the source in this way, with the same budget, for comparison. Repeatable.",
)
@section_option(
    _DATA,
    "--val-split",
    callback=_split,
    metavar="X|NAME",
    help="Fraction of the images, or name of the split, for validation.",
)
@section_option(
    _DATA, "--train-split", default="train", show_default=True, metavar="NAME", help="Name of the training split."
)
@section_option(_DATA, "--unlabelled", is_flag=True, help="Ignore labels: distillation only.")
@data_options(labels=True, section=_DATA)
@recipe_options
def finetune(model: str | None, recipe: str, show_config: bool, find_batch_size: bool, **options: Any) -> None:
    """Fine-tune a converted checkpoint, or a MODEL that is converted first, and write a run folder.

    \b
    Examples:
      ilmconvert finetune resnet50 --data pets --num-classes 37 -o run
      ilmconvert finetune resnet50-ilm_gn.safetensors --data photos --recipe distill --unlabelled -o run
      ilmconvert finetune resnet50 --data pets --num-classes 37 -o run --show-config > pets.yaml
      ilmconvert finetune --config pets.yaml --epochs 20 -o longer
      accelerate launch -m ilmconvert finetune resnet50 --data pets --num-classes 37 -o run
    """
    if not _is_main():
        warnings.simplefilter("ignore")  # the main process says the same
    chosen = get_recipe(recipe, **overrides(options))
    if show_config:
        click.echo(run_file_of(click.get_current_context(), chosen), nl=False)
        return
    if model is None:
        raise click.UsageError("name a checkpoint or a model to fine-tune, such as resnet50")
    if find_batch_size:
        _print_batch_size(model, chosen, options)
        return
    for name in ("data", "output"):
        if options[name] is None:
            raise click.UsageError(f"add --{name} {'DATA' if name == 'data' else 'DIR'}")
    _run(model, chosen, options)


def _run(model: str, recipe: Recipe, options: dict[str, Any]) -> None:
    from ilmconvert.finetune import finetune as run

    if options["resume"]:
        _check_resume(options["output"])
    refuse_ignored(model, _settled(model, options))
    data = _open_data(options, recipe.seed)
    if data.val is None and _is_main():
        warn("no validation images, so the last epoch counts as the best; --val-split 0.2 sets a fifth apart")
    with _can_be_resumed(options["dry_run"]), bar(_is_main() and not options["as_json"]) as told:
        result = run(
            model,
            data,
            recipe,
            output=options["output"],
            num_classes=options["num_classes"],
            teacher=options["teacher"],
            weights=options["weights"],
            model_args=options["model_args"],
            resume=options["resume"],
            dry_run=options["dry_run"],
            baselines=tuple(dict.fromkeys(options["baselines"])),
            progress=told,
            run_file=run_file_of(click.get_current_context(), recipe),
            **_trackers(options["log_with"]),
        )
    if not _is_main():
        return
    if options["as_json"]:
        print_json(result.summary)
    elif options["dry_run"]:
        print_plan(result.summary)
    else:
        print_result(result, _next(options, data))


def _settled(model: str, options: dict[str, Any]) -> list[str]:
    """The options that a checkpoint has no use for; a run's baseline is one that still has its norms."""
    from ilmconvert.checkpoint.safetensors_io import checkpoint_file
    from ilmconvert.checkpoint.save_load import read_header

    found = ["model_args"] if options["teacher"] is not None else ["model_args", "weights"]
    if checkpoint_file(model).is_file() and read_header(model)["layers"]:
        found += ["to", "init", "first_only", "restore_bound"]
    return found


def _next(options: dict[str, Any], data: Data) -> str:
    """The command that measures the best checkpoint, on the same validation images where there are any."""
    if not data.labelled or not Path(options["data"]).is_dir():
        return shlex.join(["ilmconvert", "export", str(options["output"])])
    split, place = options["val_split"], Path(options["data"])
    named = split if isinstance(split, str) else options["train_split"]
    if named != "train" and (place / named).is_dir():
        place /= named
    words = ["ilmconvert", "evaluate", str(options["output"]), "--data", str(place)]
    if isinstance(split, float):
        words += ["--val-split", f"{split:g}", "--seed", str(data.description["seed"])]
    return shlex.join([*words, *(["--skip-corrupt"] if data.unreadable else [])])


def _check_resume(folder: Path) -> None:
    """Refuse a folder that no run was ever started in, such as a misspelt one."""
    if (folder / "config.yaml").exists() or (folder / ".lock").exists():  # the lock comes first
        return
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:  # the same words start the run and go on with it
        if _is_main():
            warn(f"there is no run in {folder} to resume, so one starts there")
        return
    runs = [path.parent.name for path in folder.absolute().parent.glob("*/config.yaml")]
    near = difflib.get_close_matches(folder.name, runs, n=1)
    hint = f"did you mean {folder.parent / near[0]}?" if near else "name the folder of a run with -o"
    raise click.UsageError(f"there is no run in {folder} to resume; {hint} (without --resume a new run starts there)")


def _open_data(options: dict[str, Any], seed: int) -> Data:
    arguments = take_data_options(options, options["data"])
    keys = ("val_split", "unlabelled", "train_split")
    with progress(_is_main()) as say:
        say(f"opening {options['data']}")
        return open_images(options["data"], arguments, seed=seed, **{key: options[key] for key in keys})


def _trackers(names: Sequence[str]) -> dict[str, Any]:
    """The argument ``log_with``, unless it is left to the default."""
    return {"log_with": [name for name in names if name != "none"]} if names else {}


@contextmanager
def _can_be_resumed(dry_run: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        cure = "" if dry_run else "; the same command with --resume continues the run"
        raise Interrupted(f"interrupted{cure}") from error


def _is_main() -> bool:
    """Whether this process is the one that prints."""
    return next((os.environ[name] for name in _RANKS if name in os.environ), "0") == "0"


def _print_batch_size(model: str, recipe: Recipe, options: dict[str, Any]) -> None:
    from ilmconvert.data.transforms import transform_config
    from ilmconvert.finetune import find_batch_size
    from ilmconvert.finetune.devices import process
    from ilmconvert.finetune.networks import start

    keys = ("num_classes", "weights", "model_args")
    with progress(_is_main()) as say:
        say(f"loading {model}")
        network = start(model, recipe, **{key: options[key] for key in keys}).network
        shape = transform_config(network, recipe.input_size)["input_size"]
        found = find_batch_size(network, recipe, shape, progress=say) * process().num_processes
    if _is_main():
        print_json({"batch_size": found}) if options["as_json"] else click.echo(f"--batch-size {found}")
