"""What ``ilmconvert finetune`` shows: a progress bar while it trains, a table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._global import shows_progress
from ilmconvert.cli._table import print_facts, print_table

if TYPE_CHECKING:
    from ilmconvert.finetune import Progress, Result
    from ilmconvert.report import Run


@contextmanager
def bar(enabled: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """A progress bar on stderr with loss, accuracy, images a second and the time left, only on a terminal.

    Yields the function to call with every :class:`ilmconvert.finetune.Progress`; None where nothing is shown.
    """
    if not (enabled and shows_progress()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[numbers]}"))
    with Bar(*columns, console=Console(stderr=True)) as shown:
        tasks: dict[str, Any] = {}

        def update(now: Progress) -> None:
            if now.run not in tasks:
                tasks[now.run] = shown.add_task("", total=now.steps, numbers="")
            name = f"{now.run} " if now.run else ""
            shown.update(
                tasks[now.run],
                completed=now.step,
                total=now.steps,
                description=f"{name}epoch {now.epoch}/{now.epochs}",
                numbers=numbers(now),
            )

        yield update


def numbers(now: Progress) -> str:
    """Loss, accuracy, speed and the time left, as far as they are known."""
    from ilmconvert.report.text import duration, share

    parts = [
        None if now.loss is None else f"loss {now.loss:.3f}",
        None if now.top1 is None else f"top-1 {share(now.top1)}",
        None if (speed := now.images_per_second) is None else f"{speed:.{0 if speed >= 10 else 1}f} img/s",
        None if now.eta is None else f"{duration(now.eta)} left",
    ]
    return "  ".join(part for part in parts if part)


def print_result(result: Result, again: str | None = None) -> None:
    """What a run came to, what was written, and ``again``, the command to go on with."""
    from ilmconvert.data.readable import unreadable_text
    from ilmconvert.report.run import read_run

    run = read_run(result.output)
    print_run(run)
    if unreadable := result.summary.get("data", {}).get("unreadable"):
        click.echo(f"Left out: {unreadable_text(unreadable)}")
    if result.summary["stopped_early"]:
        click.echo(f"Stopped after {result.summary['epochs']} epochs: no better result")
    click.echo(f"Wrote {result.best}")
    for line in better_baselines(run):
        click.echo(line)
    if again is not None:
        click.echo(f"Next: {again}")


def better_baselines(run: Run) -> list[str]:
    """A line for every baseline that did better on the validation images than the converted network."""
    from ilmconvert.report.run import arms, label
    from ilmconvert.report.text import share

    own, *others = arms(run)
    return [
        f"Better on these images, {share(arm.end)}: {label(arm.name, run)}, "
        f"{run.path / 'baselines' / arm.name / 'best.safetensors'}"
        for arm in others
        if own.end is not None and arm.end is not None and arm.end > own.end
    ]


def print_run(run: Run) -> None:
    """The networks of a run before, right after the conversion, and after fine-tuning, on validation images."""
    from ilmconvert.report.run import arms, label
    from ilmconvert.report.tables import Table
    from ilmconvert.report.text import NONE, share

    before = run.summary.get("before") or {}
    rows = []
    for arm in arms(run):
        best = arm.best or {}
        start, after = share(arm.start), share(arm.end, arm.end_interval)
        if start is None and not arm.name and before.get("agreement") is not None:
            start = f"{share(before['agreement'])} the same class as the {before['against']}"
        if after is None and best.get("val_agreement") is not None:
            after = f"{share(best['val_agreement'])} the same class as the teacher"
        epoch = f"{best['epoch']:.0f} of {arm.epochs}" if best else NONE
        rows.append((label(arm.name, run), *(text or NONE for text in (share(arm.source), start, after)), epoch))
    caption = None
    if run.rows and not run.validated:
        caption = "no validation images"
    elif run.config.get("model", {}).get("head_replaced"):
        caption = "not measured before training: the head is new"
    model, recipe = run.summary.get("model", run.path), run.config.get("recipe", {}).get("name", "")
    columns = ("network", "before", "right after", "after", "best epoch")
    table = Table(columns, rows).without_empty_columns()
    title = f"{model}, recipe {recipe}: top-1 on validation images"
    print_table(title, table.columns, table.texts(), caption=caption)


def print_plan(summary: Mapping[str, Any]) -> None:
    """What a dry run found: the length of the run, and what trains at which learning rate."""
    from ilmconvert.data.folders import some
    from ilmconvert.data.readable import unreadable_text

    data, found = summary["data"], [("device", f"{summary['device']}, {summary['processes']} process(es)")]
    found.append(("images", f"{data.get('train')} to train, {data.get('val') or 'no'} to validate"))
    if data.get("unreadable"):
        found.append(("left out", unreadable_text(data["unreadable"])))
    if names := data.get("classes"):
        found.append(("classes", f"{len(names)}: {some(names, 8)}"))
    found.append(("length", f"{summary['steps']} steps, {summary['batches_per_epoch']} batches an epoch"))
    for kind, group in summary["trained"].items():
        rates = group["learning_rates"]
        span = f"{rates[0]:.3g}" if len(rates) == 1 else f"{rates[0]:.3g} to {rates[-1]:.3g}"
        found.append((f"trains: {kind}", f"{group['parameters']:,} parameters, learning rate {span}"))
    found.append(("loss of the first batch", f"{summary['first_loss']:.4f}"))
    print_facts(f"{summary['model']['name']}, recipe {summary['recipe']['name']}: dry run", found)
    click.echo("Nothing was written")
