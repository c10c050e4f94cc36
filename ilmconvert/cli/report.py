"""``ilmconvert report RUN_DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import print_json, warn

if TYPE_CHECKING:
    from ilmconvert.report import Run

DEFAULT_NAME = "report.html"


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--html",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help=f"Write a page; without FILE to {DEFAULT_NAME} in RUN_DIR.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as one JSON object.")
def report(run_dir: Path, html: str | None, as_json: bool) -> None:
    """Show what a run of `ilmconvert finetune` came to: before, right after, after, against its baselines.

    \b
    Examples:
      ilmconvert report run --html
      ilmconvert report run --json
    """
    from ilmconvert.report.run import read_run

    run = read_run(run_dir)
    if not run.finished:
        warn(f"the run in {run_dir} isn't finished; the best of {len(run.rows)} epochs is shown")
    target = None if html is None else Path(html) if html else run_dir / DEFAULT_NAME
    if target is not None:
        from ilmconvert.report import write_run

        write_run(run, target)
    if as_json:
        print_json(_to_dict(run))
        return
    _print(run)
    if target is not None:
        click.echo(f"Wrote {target}")


def _to_dict(run: Run) -> dict[str, Any]:
    from dataclasses import asdict

    from ilmconvert.report.run import arms

    return {
        "run": str(run.path),
        "finished": run.finished,
        "model": run.summary.get("model"),
        "networks": [asdict(arm) for arm in arms(run)],
        "epochs": [dict(row) for row in run.rows],
    }


def _print(run: Run) -> None:
    from rich.console import Console
    from rich.table import Table

    from ilmconvert.report.run import arms
    from ilmconvert.report.run_page import label
    from ilmconvert.report.text import NONE, share

    table = Table(title=f"{run.summary.get('model', run.path)}, top-1 on validation images")
    for column in ("network", "before", "right after", "after", "best epoch"):
        table.add_column(column, overflow="fold")
    for arm in arms(run):
        epoch = NONE if arm.best is None else f"{arm.best['epoch']:.0f} of {arm.epochs}"
        shares = (share(arm.source), share(arm.start), share(arm.end, arm.end_interval))
        table.add_row(label(arm.name, run), *(text or NONE for text in shares), epoch)
    Console().print(table)
