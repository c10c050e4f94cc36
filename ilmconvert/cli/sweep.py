"""``ilmconvert sweep``: the conversion checked on every model of timm and torchvision."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from ilmconvert._constants import exact_targets
from ilmconvert.cli._exit import EXIT_FAILED
from ilmconvert.cli._global import shows_progress
from ilmconvert.cli._progress import progress as told
from ilmconvert.cli._table import print_table
from ilmconvert.errors import ModelError


def targets(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Names of targets, separated by commas."""
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if name not in exact_targets():
            raise click.BadParameter(f"{name!r} is not one of {', '.join(exact_targets())}")
    return names


@click.command()
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--to", callback=targets, default="ilm_gn", show_default=True, help="Target layers, separated by commas.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=2, show_default=True, metavar="N", help="Number of models at a time."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("sweep.jsonl"),
    show_default=True,
    help="File with one JSON line per model and target; those in it already aren't run again.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit for a model.",
)
@click.option(
    "--max-parameters",
    type=click.IntRange(min=0),
    metavar="N",
    help="Convert larger models without values, and don't run them.  [default: 400 million]",
)
@click.option("--one-per-family", is_flag=True, help="Take only the smallest model of each source file of a library.")
@click.option("--retry", is_flag=True, help="Run models that failed again.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts and failures as one JSON object.")
def sweep(
    patterns: tuple[str, ...],
    to: tuple[str, ...],
    jobs: int,
    out: Path,
    timeout: float,
    max_parameters: int | None,
    one_per_family: bool,
    retry: bool,
    as_json: bool,
) -> int:
    """Convert, compare, save, load and train every model whose name matches a PATTERN (all of them by default).

    Models are built with random weights and random running statistics; nothing is downloaded. The exit code is 1
    if a model failed.

    \b
    Examples:
      ilmconvert sweep 'test_*' resnet50
      ilmconvert sweep --to ilm_gn,ilm_ln --jobs 4 --out sweep.jsonl
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ilmconvert.models.create import list_models
    from ilmconvert.testing.summary import count_outcomes, outcome
    from ilmconvert.testing.sweep import run_sweep
    from ilmconvert.testing.sweep_model import MAX_PARAMETERS

    found = {pattern: list_models(pattern) for pattern in patterns or (None,)}
    for pattern, matching in found.items():
        if not matching:
            raise ModelError(f"no model matches {pattern!r}; `ilmconvert list` shows the names")
    names = list(dict.fromkeys(name for matching in found.values() for name in matching))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True), disable=not shows_progress())
    with told(enabled=not shows_progress()) as say, bars as progress:
        looking, running = progress.add_task("looking", total=None), progress.add_task("running", total=None)

        def on_line(line: Mapping[str, Any], done: int, total: int) -> None:
            if line["error"] is not None:
                progress.console.print(f"{line['model']} ({line['to']}): {line['error']}", style="red", markup=False)
            progress.update(running, completed=done, total=total, description=line["model"])
            say(f"{done} of {total} done, last {line['model']}", often=True)

        def on_survey(done: int, total: int) -> None:
            progress.update(looking, completed=done, total=total)
            say(f"looked at {done} of {total} models", often=True)

        lines = run_sweep(
            names,
            to,
            out,
            jobs=jobs,
            timeout=timeout,
            max_parameters=MAX_PARAMETERS if max_parameters is None else max_parameters,
            one_per_family=one_per_family,
            retry=retry,
            on_survey=on_survey,
            on_line=on_line,
        )
    failures = [line for line in lines if outcome(line) == "failed"]
    if as_json:
        counts = count_outcomes(lines, lambda line: line["to"])
        click.echo(json.dumps({"counts": counts, "failures": failures}, indent=2))
    else:
        _print(lines)
    return EXIT_FAILED if failures else 0


def _print(lines: Iterable[Mapping[str, Any]]) -> None:
    """One row a target and library: how many models there are of each outcome."""
    from ilmconvert.testing.summary import OUTCOMES, count_outcomes

    rows = count_outcomes(lines, lambda line: (line["to"], line["library"] or "?"))
    seen: Counter[str] = sum(rows.values(), Counter())
    shown = ["tried", *(name for name in OUTCOMES if seen[name])]
    cells = [(*key, *(str(counts[name]) for name in shown)) for key, counts in rows.items()]
    print_table("Outcomes", ("target", "library", *shown), cells, right=True)
