"""What ``ilmconvert finetune`` shows: a progress bar while it trains, a table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._global import shows_progress

if TYPE_CHECKING:
    from ilmconvert.finetune import Progress, Result


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
    parts = [
        None if now.loss is None else f"loss {now.loss:.3f}",
        None if now.top1 is None else f"top-1 {now.top1:.1%}",
        None if now.images_per_second is None else f"{now.images_per_second:.0f} img/s",
        None if now.eta is None else f"{duration(now.eta)} left",
    ]
    return "  ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def print_result(result: Result) -> None:
    """The accuracy of source, converted and fine-tuned network and of the baselines, and what was written."""
    from rich.console import Console
    from rich.table import Table

    summary = result.summary
    table = Table(title=f"{summary['model']}, recipe {summary['recipe']}")
    table.add_column("network", style="bold")
    table.add_column("validation", overflow="fold")
    for row in rows(summary):
        table.add_row(*row)
    Console().print(table)
    if summary["stopped_early"]:
        click.echo(f"Stopped after {summary['epochs']} epochs: no better result")
    click.echo(f"Wrote {result.best}")


def rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the table shows: a network, and how it does on the validation images."""
    before, best = summary["before"], summary["best"]
    found = []
    if before is not None:
        if before.get("against_top1") is not None:
            found.append(("source", _share(before["against_top1"])))
        elif before.get("agreement") is not None:
            found.append((f"at the start, same class as the {before['against']}", _share(before["agreement"])))
        if before.get("top1") is not None:
            found.append(("converted", _share(before["top1"])))
    elif best["val_top1"] is not None:
        found.append(("source and converted", "not measured: the head is new"))
    found.append((f"fine-tuned, epoch {best['epoch']}", _row(best)))
    return [*found, *((f"baseline {name}", _row(row)) for name, row in summary.get("baselines", {}).items())]


def _row(row: Mapping[str, Any]) -> str:
    if row["val_top1"] is not None:
        return _share(row["val_top1"])
    if row["val_agreement"] is not None:
        return f"{_share(row['val_agreement'])} the same class as the teacher"
    return "no validation images"


def _share(value: float) -> str:
    return f"{value:.2%}"


def print_plan(summary: Mapping[str, Any]) -> None:
    """What a dry run found: the length of the run, and what trains at which learning rate."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{summary['model']['name']}, recipe {summary['recipe']['name']}: dry run", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("device", f"{summary['device']}, {summary['processes']} process(es)")
    table.add_row(
        "images", f"{summary['data'].get('train')} to train, {summary['data'].get('val') or 'no'} to validate"
    )
    table.add_row("length", f"{summary['steps']} steps, {summary['batches_per_epoch']} batches an epoch")
    for kind, group in summary["trained"].items():
        rates = group["learning_rates"]
        span = f"{rates[0]:.3g}" if len(rates) == 1 else f"{rates[0]:.3g} to {rates[-1]:.3g}"
        table.add_row(f"trains: {kind}", f"{group['parameters']:,} parameters, learning rate {span}")
    table.add_row("loss of the first batch", f"{summary['first_loss']:.4f}")
    Console().print(table)
    click.echo("Nothing was written")
