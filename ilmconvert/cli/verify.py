"""``ilmconvert verify CHECKPOINT``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import model_arg_option, print_json, progress, warn
from ilmconvert.cli._data_options import data_options, open_images, take_data_options
from ilmconvert.cli._exit import EXIT_FAILED, EXIT_NOT_COMPARED
from ilmconvert.cli._outputs import check_page
from ilmconvert.cli._table import print_facts, print_table

if TYPE_CHECKING:
    from ilmconvert.evaluation.verify.inputs import Sample
    from ilmconvert.evaluation.verify.opened_checkpoint import OpenedCheckpoint
    from ilmconvert.evaluation.verify.verification import Verification

_SHARE = click.FloatRange(0, 1)
_NOT_NEGATIVE = click.FloatRange(min=0)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--source", metavar="MODEL|CHECKPOINT", help="The source.  [default: the one that the file names]")
@click.option("--weights", metavar="default|FILE", help="Weights of the source.  [default: those that the file names]")
@model_arg_option("the source")
@click.option("--data", metavar="DIR", help="Images to compare on, with or without classes.  [default: random inputs]")
@click.option("--unlabelled", is_flag=True, help="Ignore the classes of the images.")
@data_options(labels=True)
@click.option("--max-images", type=click.IntRange(min=1), metavar="N", help="Use only N of the images, evenly spread.")
@click.option(
    "--input-size", type=click.IntRange(min=1), help="Height and width of the inputs.  [default: the model's]"
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help="Inputs of a batch."
)
@click.option(
    "--random-batches",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Number of random batches without --data.",
)
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that read images.")
@click.option("--seed", default=0, show_default=True, help="Random seed of the inputs.")
@click.option(
    "--layers",
    multiple=True,
    metavar="norms|all|none|PATTERN",
    help="Layers to compare one by one. Repeatable.  [default: norms]",
)
@click.option(
    "--worst", type=click.IntRange(min=0), default=12, show_default=True, metavar="N", help="Number of images to list."
)
@click.option(
    "--max-error", type=_NOT_NEGATIVE, help="Largest error over the largest output.  [default: 1e-5 if exact]"
)
@click.option(
    "--min-agreement", type=_SHARE, help="Share of the same classes.  [default: 0.999 if exact, 0.99 if bounded]"
)
@click.option("--max-kl", type=_NOT_NEGATIVE, help="Mean KL divergence in nats.  [default: none]")
@click.option(
    "--min-ratio",
    type=float,
    metavar="DB",
    help="Signal over error of every layer by itself, in decibels.  [default: 80 if exact]",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also write a report.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def verify(checkpoint: Path, html: Path | None, as_json: bool, **options: Any) -> None:
    """Compare a converted CHECKPOINT with its source, and exit with 1 if it fails a criterion of its conversion.

    Where the source isn't available the checkpoint is compared with what its own layers tell of it, and the exit code
    is 3.

    \b
    Examples:
      ilmconvert verify resnet50-ilm_gn.safetensors --data photos --html report.html
      ilmconvert verify resnet50-ilm_gn.safetensors --source resnet50 --layers all --json
    """
    if html is not None:
        check_page(html)
    opening = take_data_options(options, options["data"])
    if options["unlabelled"] and options["data"] is None:
        raise click.UsageError("--unlabelled is about --data; add that, or leave it out")
    result = _verify(checkpoint, options, opening)
    if html is not None:
        from ilmconvert.report import write_verification

        write_verification(result, html)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)
        if html is not None:
            click.echo(f"Wrote {html}")
    code = EXIT_FAILED if result.failed else EXIT_NOT_COMPARED if result.not_compared else 0
    click.get_current_context().exit(code)


def _verify(checkpoint: Path, options: dict[str, Any], opening: dict[str, Any]) -> Verification:
    with progress() as say:
        say(f"loading {checkpoint}")
        from ilmconvert.evaluation.verify.opened_checkpoint import open_checkpoint
        from ilmconvert.evaluation.verify.source_model import find_source_model
        from ilmconvert.evaluation.verify.verification import verify as run

        opened = open_checkpoint(checkpoint)
        say("looking for the source")
        source = find_source_model(
            opened, source=options["source"], weights=options["weights"], model_args=options["model_args"]
        )
        if options["data"] is not None:
            say(f"opening {options['data']}")
        sample = _sample(opened, options, opening)
        for caveat in (*source.caveats, *sample.caveats):
            warn(caveat)
        return run(
            opened,
            source,
            sample,
            layers=_layers(options["layers"]),
            progress=lambda done: say(f"compared {done} of {sample.description}", often=True),
            **{key: options[key] for key in ("max_error", "min_agreement", "max_kl", "min_ratio", "worst")},
        )


def _layers(given: tuple[str, ...]) -> str | tuple[str, ...]:
    return given if len(given) > 1 else (given or ("norms",))[0]


def _sample(opened: OpenedCheckpoint, options: dict[str, Any], opening: dict[str, Any]) -> Sample:
    from ilmconvert.evaluation.verify.inputs import folder_sample, random_sample

    size, batch_size = options["input_size"], options["batch_size"]
    if options["data"] is None:
        batches = options["random_batches"]
        return random_sample(opened.model, batches=batches, batch_size=batch_size, size=size, seed=options["seed"])
    return folder_sample(
        opened.model,
        open_images(options["data"], opening, unlabelled=options["unlabelled"]),
        at_most=options["max_images"],
        batch_size=batch_size,
        input_size=size,
        workers=options["workers"],
    )


def _print(result: Verification) -> None:
    from ilmconvert.report.facts import verification_facts

    print_facts(f"{result.checkpoint.path} against {result.source.description}", verification_facts(result))
    print_table(
        "Criteria",
        ("", "limit", "measured", ""),
        [
            (check.name, check.limit, check.measured, "[green]passed" if check.passed else "[bold red]FAILED")
            for check in result.checks
        ],
    )
    click.echo(result.statement)
    click.echo(
        click.style(
            _VERDICTS[result.verdict],
            fg="red" if result.failed else "yellow" if result.not_compared else None,
            bold=True,
        )
    )


_VERDICTS = {
    "passed": "PASSED",
    "failed": "FAILED",
    "not compared": "NOT COMPARED with the original source: name it with --source MODEL and --weights FILE.",
    "not judged": "Measured, not judged: add --min-agreement or --max-error to judge it.",
}
