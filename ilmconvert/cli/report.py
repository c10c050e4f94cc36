"""``ilmconvert report RUN_DIR...``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import print_json, warn
from ilmconvert.cli._finetune_view import print_run
from ilmconvert.cli._outputs import check_page
from ilmconvert.cli._table import print_table
from ilmconvert.cli.finetune import BASELINES

if TYPE_CHECKING:
    from ilmconvert.report import Run

DEFAULT_NAME = "report.html"


@click.command()
@click.argument("run_dirs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN_DIR...")
@click.option(
    "--html",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help=f"Write a page of one run; without FILE to {DEFAULT_NAME} in RUN_DIR.",
)
@click.option(
    "--against",
    type=click.Choice(BASELINES),
    help="Of several runs: the baseline to compare with.  [default: frozen-bn, where it was run]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as one JSON object.")
def report(run_dirs: tuple[Path, ...], html: str | None, against: str | None, as_json: bool) -> None:
    """Show what a run of `ilmconvert finetune` came to: before, right after, after, against its baselines.

    Of several runs that differ in their seed, means and paired differences with 95 % intervals over the seeds; runs of
    other recipes stand beside them.

    \b
    Examples:
      ilmconvert report run --html
      ilmconvert report run --json
      ilmconvert report runs/seed-0 runs/seed-1 runs/seed-2 runs/seed-3
    """
    if len(run_dirs) > 1:
        if html is not None:
            raise click.UsageError("--html writes the page of one run; name one, or leave --html out")
        _compare(run_dirs, against, as_json)
        return
    if against is not None:
        raise click.UsageError("--against compares several runs; name more than one, or leave --against out")
    _show(run_dirs[0], html, as_json)


def _compare(run_dirs: tuple[Path, ...], against: str | None, as_json: bool) -> None:
    from ilmconvert.report.compare_runs import compare_runs

    found = compare_runs(run_dirs, against)
    if as_json:
        print_json(found.to_dict())
        return
    table = found.table()
    caption = "best epochs on validation images; 95 % intervals over seeds"
    print_table(f"{len(run_dirs)} runs", table.columns, table.texts(), right=True, caption=caption)
    if str(found):
        click.echo(str(found))


def _show(run_dir: Path, html: str | None, as_json: bool) -> None:
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
