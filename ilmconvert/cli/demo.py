"""``ilmconvert demo``: the real EfficientNet-Lite0 on sample photographs, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ilmconvert.cli._common import TARGETS, print_json, progress

if TYPE_CHECKING:
    from rich.table import Table

    from ilmconvert.evaluation.demo import DemoResult

SHOWN = ("source", "fresh", "copied", "identity")
MOST_ROWS = 12


@click.command()
@click.option("--to", type=click.Choice(TARGETS), default="ilm_gn", show_default=True, help="The new layer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all images.")
def demo(to: str, as_json: bool) -> None:
    """Convert a real ImageNet network offline and classify sample photographs before and after.

    \b
    Examples:
      ilmconvert demo
      ilmconvert demo --to ilm_ln --json
    """
    from rich.console import Console

    from ilmconvert.evaluation.demo import run_demo

    with progress() as say:
        result = run_demo(to, progress=lambda title: say(f"EfficientNet-Lite0: {title}"))
    if as_json:
        print_json(result.to_dict())
        return
    console = Console()
    console.print(predictions(result))
    console.print(summary(result))


def predictions(result: DemoResult) -> Table:
    """One row a whole photograph: the class that each network sees; where it is the source's, in green."""
    from rich.table import Table

    table = Table(title="EfficientNet-Lite0 with real ImageNet weights: what each network sees")
    networks = [network for network in result.networks if network.name in SHOWN]
    table.add_column("photograph")
    for network in networks:
        table.add_column(network.title)
    rows = [index for index, whole in enumerate(result.whole) if whole]
    for row in rows[:MOST_ROWS]:
        expected = networks[0].classes[row]
        seen = [network.classes[row] for network in networks]
        marked = [f"[green]{name}[/]" if name == expected else f"[red]{name}[/]" for name in seen]
        table.add_row(result.images[row], *marked)
    return table


def summary(result: DemoResult) -> Table:
    """One row a network: agreement with the source and largest error of the logits, over all images."""
    from rich.table import Table

    table = Table(title=f"Against the source, {len(result.images)} images, before any training")
    table.add_column("network")
    table.add_column("same class as the source", justify="right")
    table.add_column("largest logit error", justify="right")
    for network in result.networks[1:]:
        table.add_row(network.title, f"{network.agreement:.0%}", f"{network.largest_error:.1e}")
    return table
