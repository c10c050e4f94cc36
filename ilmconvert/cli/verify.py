"""``ilmconvert verify CHECKPOINT``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import model_arg_option, print_json, progress, warn
from ilmconvert.cli._exit import EXIT_BROKEN

if TYPE_CHECKING:
    from ilmconvert.evaluation.verify.inputs import Sample
    from ilmconvert.evaluation.verify.opened_checkpoint import Subject
    from ilmconvert.evaluation.verify.verification import Verification

_SHARE = click.FloatRange(0, 1)
_NOT_NEGATIVE = click.FloatRange(min=0)
_WORST = 3


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--source", metavar="MODEL|CHECKPOINT", help="The source.  [default: the one that the file names]")
@click.option("--weights", metavar="default|FILE", help="Of the source.  [default: those that the file names]")
@model_arg_option("the source")
@click.option(
    "--data", metavar="DIR", help="ImageDataset to compare on, with or without classes.  [default: random inputs]"
)
@click.option("--max-images", type=click.IntRange(min=1), metavar="N", help="Of these only N, evenly spread.")
@click.option(
    "--input-size", type=click.IntRange(min=1), help="Height and width of the inputs.  [default: the model's]"
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--random-batches", type=click.IntRange(min=1), default=4, show_default=True, help="Without --data.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that read images.")
@click.option("--seed", default=0, show_default=True, help="Of the random inputs.")
@click.option(
    "--layers",
    multiple=True,
    metavar="norms|all|none|PATTERN",
    help="Layers to compare one by one. Repeatable.  [default: norms]",
)
@click.option("--worst", type=click.IntRange(min=0), default=12, show_default=True, help="ImageDataset to list.")
@click.option(
    "--max-error", type=_NOT_NEGATIVE, help="Largest error over the largest output.  [default: 1e-3 if exact]"
)
@click.option(
    "--min-agreement", type=_SHARE, help="Share of the same classes.  [default: 0.999 if exact, 0.99 if bounded]"
)
@click.option("--max-kl", type=_NOT_NEGATIVE, help="Mean KL divergence in nats.  [default: none]")
@click.option(
    "--min-ratio",
    type=float,
    metavar="DB",
    help="Signal over error of every layer by itself, in decibels.  [default: 60 if exact]",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also write a report.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def verify(checkpoint: Path, html: Path | None, as_json: bool, **options: Any) -> None:
    """Compare a converted CHECKPOINT with its source, and exit with 1 if it doesn't keep its conversion's promise.

    \b
    Examples:
      ilmconvert verify resnet50-ilm_gn.safetensors --data photos --html report.html
      ilmconvert verify resnet50-ilm_gn.safetensors --source resnet50 --layers all --json
    """
    if html is not None and not html.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {html.parent} to write {html.name} into; make it first")
    result = _verify(checkpoint, options)
    if html is not None:
        from ilmconvert.report import write_verification

        write_verification(result, html)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)
        if html is not None:
            click.echo(f"Wrote {html}")
    click.get_current_context().exit(EXIT_BROKEN if result.broken else 0)


def _verify(checkpoint: Path, options: dict[str, Any]) -> Verification:
    with progress() as say:
        say(f"loading {checkpoint}")
        from ilmconvert.evaluation.verify.find_source import find_reference
        from ilmconvert.evaluation.verify.opened_checkpoint import open_subject
        from ilmconvert.evaluation.verify.verification import verify as run

        subject = open_subject(checkpoint)
        say("looking for the source")
        reference = find_reference(
            subject, source=options["source"], weights=options["weights"], model_args=options["model_args"]
        )
        sample = _sample(subject, options)
        for caveat in (*reference.caveats, *sample.caveats):
            warn(caveat)
        return run(
            subject,
            reference,
            sample,
            layers=_layers(options["layers"]),
            progress=lambda done: say(f"compared {done} of {sample.description}"),
            **{key: options[key] for key in ("max_error", "min_agreement", "max_kl", "min_ratio", "worst")},
        )


def _layers(given: tuple[str, ...]) -> str | tuple[str, ...]:
    return given if len(given) > 1 else (given or ("norms",))[0]


def _sample(subject: Subject, options: dict[str, Any]) -> Sample:
    from ilmconvert.evaluation.verify.inputs import folder_sample, random_sample

    size, batch_size = options["input_size"], options["batch_size"]
    if options["data"] is None:
        batches = options["random_batches"]
        return random_sample(subject.model, batches=batches, batch_size=batch_size, size=size, seed=options["seed"])
    return folder_sample(
        subject.model,
        options["data"],
        at_most=options["max_images"],
        batch_size=batch_size,
        input_size=size,
        workers=options["workers"],
    )


def _print(result: Verification) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.subject.path} against {result.reference.description}", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows(result):
        table.add_row(*row)
    checks = Table(title="The promise", show_header=True)
    for column in ("", "limit", "measured", ""):
        checks.add_column(column, overflow="fold")
    for check in result.checks:
        checks.add_row(check.name, check.limit, check.measured, "[green]holds" if check.holds else "[bold red]broken")
    console = Console()
    console.print(table)
    console.print(checks)
    click.echo(result.statement)
    click.echo(click.style(_VERDICTS[result.verdict], fg="red" if result.broken else None, bold=True))


_VERDICTS = {
    "kept": "The promise is kept.",
    "broken": "THE PROMISE IS BROKEN.",
    "not judged": "Measured, not judged: add --min-agreement or --max-error to judge it.",
}


def rows(result: Verification) -> list[tuple[str, str]]:
    """What the table shows: a label and a text each, without what wasn't measured."""
    from ilmconvert.evaluation.layer_metrics import worst_layers
    from ilmconvert.report.text import decibels, duration, share

    found, cost = result.fidelity, result.fidelity.cost
    worst, alone = worst_layers(found.layers, _WORST), worst_layers(found.layers, _WORST, alone=True)
    made: list[tuple[str, str | None]] = [
        ("compared on", result.sample.description),
        ("top-1 agreement", share(found.top1_agreement, found.top1_interval)),
        ("top-5 agreement", share(found.top5_agreement)),
        ("KL divergence", None if found.kl is None else f"{found.kl:.2g} nats, largest {found.largest_kl:.2g}"),
        ("error of the outputs", f"largest {found.largest_error:.2g}, mean {found.mean_error:.2g}"),
        ("over the largest output", f"{found.relative_error:.2g}"),
        ("accuracy, source", share(found.source_top1)),
        ("accuracy, converted", share(found.converted_top1, found.converted_top1_interval)),
        ("worst layers", ", ".join(f"{layer.name} {decibels(layer.snr)}" for layer in worst) or None),
        ("worst by themselves", ", ".join(f"{layer.name} {decibels(layer.own_snr)}" for layer in alone) or None),
        ("norms", f"{len(result.subject.converted)} converted, {len(result.skipped)} stay"),
    ]
    if cost is not None:
        made += [
            ("parameters", f"{cost.source_parameters:,} before, {cost.converted_parameters:,} after"),
            (
                f"forward of {cost.batch_size}, {cost.device}",
                f"{duration(cost.source_seconds)} before, {duration(cost.converted_seconds)} after "
                f"({cost.time_ratio:.2f} times)",
            ),
        ]
    return [(label, text) for label, text in made if text is not None]
