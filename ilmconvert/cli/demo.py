"""``ilmconvert demo``: the real EfficientNet-Lite0 on sample photographs, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ilmconvert._constants import exact_targets
from ilmconvert.cli._common import print_json, progress
from ilmconvert.cli._table import print_table

if TYPE_CHECKING:
    from ilmconvert.evaluation.demo import DemoResult

SHOWN = ("source", "frozen", "fresh", "copied", "identity")
MOST_ROWS = 12


@click.command()
@click.option("--to", type=click.Choice(exact_targets()), default="ilm_gn", show_default=True, help="The new layer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all images.")
def demo(to: str, as_json: bool) -> None:
    """Convert a real ImageNet network offline and classify sample photographs before and after.

    \b
    Examples:
      ilmconvert demo
      ilmconvert demo --to ilm_ln --json
    """
    from ilmconvert.evaluation.demo import run_demo

    with progress() as say:
        result = run_demo(to, progress=lambda title: say(f"EfficientNet-Lite0: {title}"))
    if as_json:
        print_json(result.to_dict())
        return
    _print(result)
    click.echo(f"Next: ilmconvert plan resnet50 --to {to}   # any model of `ilmconvert list`")


def _print(result: DemoResult) -> None:
    """The class that each network sees on whole photographs, green where it is the source's; then, over all images,
    agreement with the source and the largest error of the logits."""
    from ilmconvert.report.text import share

    networks = [network for network in result.networks if network.name in SHOWN]
    rows = []
    for index in [index for index, whole in enumerate(result.whole) if whole][:MOST_ROWS]:
        seen = [network.classes[index] for network in networks]
        marked = [f"[green]{name}[/]" if name == seen[0] else f"[red]{name}[/]" for name in seen]
        rows.append((result.images[index], *marked))
    title = "EfficientNet-Lite0 with real ImageNet weights: what each network sees"
    print_table(title, ("photograph", *(network.title for network in networks)), rows)
    others = [(n.title, share(n.agreement, digits=0) or "", f"{n.largest_error:.1e}") for n in result.networks[1:]]
    title = f"Against the source, {len(result.images)} images, before any training"
    print_table(title, ("network", "same class as the source", "largest logit error"), others, right=True)
