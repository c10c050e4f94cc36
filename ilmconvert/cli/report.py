"""``ilmconvert report RUN_DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import print_json, warn
from ilmconvert.cli._finetune_view import print_run
from ilmconvert.cli._outputs import check_page

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
        check_page(target)
        from ilmconvert.report import write_run

        write_run(run, target)
    if as_json:
        print_json(_to_dict(run))
        return
    print_run(run)
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
