"""``ilmconvert robustness CHECKPOINT --data DATA``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import SEVERITIES, print_json, progress, severity_option
from ilmconvert.cli._data_options import data_options, echo_left_out, open_images, take_data_options
from ilmconvert.cli._table import print_table
from ilmconvert.errors import ILMConvertError

if TYPE_CHECKING:
    from ilmconvert.evaluation.robustness import Agreement


@click.command()
@click.argument("checkpoint")
@click.option("--data", required=True, help="A folder of images, or a timm dataset's name; labels aren't used.")
@data_options(labels=False)
@click.option(
    "--images",
    type=click.IntRange(min=2),
    default=200,
    show_default=True,
    metavar="N",
    help="Largest number of images.",
)
@severity_option()
@click.option(
    "--limits",
    type=float,
    nargs=3,
    metavar="LOW HIGH RADIUS",
    help="Try these of the first norm instead of the file's: log contrast, low and high, and radius of the means.",
)
@click.option("--input-size", type=click.IntRange(min=1), help="Height and width.  [default: the model's]")
@click.option("--seed", default=0, show_default=True, help="Random seed of the choice of images.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Write a plot (PNG, SVG, PDF).")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON object.")
def robustness(
    checkpoint: str,
    data: str,
    images: int,
    severities: tuple[int, ...],
    limits: tuple[float, ...] | None,
    input_size: int | None,
    seed: int,
    plot: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare a bounded checkpoint with its source on corrupted images.

    Counted is the class that the source gives the clean image. The third column is the source behind a
    standardisation of each image, which undoes every global change of contrast and brightness.

    \b
    Examples:
      ilmconvert robustness resnet50-ilm_gn.safetensors --data photos
      ilmconvert robustness resnet50-ilm_gn.safetensors --data photos --severity 5 --plot plot.png
    """
    if plot and not Path(plot).absolute().parent.is_dir():
        raise click.UsageError(f"--plot: there is no folder {Path(plot).parent}")
    if plot:
        from ilmconvert.evaluation.robustness_plot import check_plot

        check_plot(Path(plot))
    opening = take_data_options(options, data)
    with progress() as say:
        say(f"loading {checkpoint}")
        from ilmconvert.calibration.bound import bound
        from ilmconvert.checkpoint.save_load import load
        from ilmconvert.data.trained_images import described
        from ilmconvert.data.transforms import transform_config, transform_text, unit_images
        from ilmconvert.evaluation.robustness import all_conditions, compare_networks, is_bounded, networks

        model = load(checkpoint)
        if limits:
            try:
                bound(model, limits)
            except ValueError as error:
                raise click.UsageError(f"--limits: {error}") from error
        elif not is_bounded(model):
            raise ILMConvertError(f"{checkpoint} has no bound to compare; convert it with --robust, or try --limits")
        config = transform_config(model, input_size)
        say(f"reading images of {data}")
        opened = open_images(data, opening, unlabelled=True, seed=seed)
        found, normalize = unit_images(model, opened, at_most=images, input_size=input_size, seed=seed)
        conditions = all_conditions(severities or SEVERITIES)
        rows = []
        for row in compare_networks(networks(model, normalize, found), found, normalize, conditions):
            rows.append(row)
            say(f"condition {len({r.condition for r in rows})} of {len(conditions)}", often=True)
    if plot:
        from ilmconvert.evaluation.robustness_plot import plot_agreement

        plot_agreement(rows, Path(plot))
    if as_json:
        facts = {"checkpoint": checkpoint, "data": data, "images": len(found), "input": described(config)}
        print_json({**facts, "unreadable": opened.unreadable, "rows": [_plain(r) for r in rows]})
    else:
        _print(rows, f"{checkpoint}: {len(found)} images of {data}, {transform_text(config)}")
        echo_left_out(opened)


def _plain(row: Agreement) -> dict[str, Any]:
    condition = {"condition": row.condition.name, "severity": row.condition.severity, "network": row.network}
    numbers = ("agreement", "error", "gain", "gain_error", "interval")
    return condition | {name: getattr(row, name) for name in numbers}


def _print(rows: list[Agreement], title: str) -> None:
    titles = list(dict.fromkeys(row.network for row in rows))
    shown = []
    for start in range(0, len(rows), len(titles)):
        same = rows[start : start + len(titles)]
        cells = [_cell(row, first=row is same[0]) for row in same]
        shown.append((same[0].condition.name, str(same[0].condition.severity or ""), *cells))
    caption = "agreement with the source's clean class, and its 95 % interval"
    print_table(title, ("condition", "severity", *titles), shown, right=True, caption=caption)


def _cell(row: Agreement, *, first: bool) -> str:
    """Green where the gain over the source is more than two of its standard errors, red where the loss is."""
    low, high = row.interval
    text = f"{row.agreement:.0%} ({100 * low:.0f}-{100 * high:.0f})"
    if first or abs(row.gain) <= 2 * row.gain_error:
        return text
    return f"[{'green' if row.gain > 0 else 'red'}]{text}[/]"
