"""A bar for those who pass ``progress=True``, with finished epochs above it: of tqdm, for terminals and notebooks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ilmconvert.finetune import run_log
from ilmconvert.finetune.result import Progress


@contextmanager
def run_bar(progress: Callable[[Progress], None] | bool | None) -> Iterator[Callable[[Progress], None] | None]:
    """The function to call after every batch: the caller's own, one that moves bars for True, else None."""
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    bars = _Bars()
    handler = _AboveTheBars()
    level = run_log.logger.level
    run_log.logger.addHandler(handler)
    run_log.logger.setLevel(logging.INFO)
    try:
        yield bars.show
    finally:
        run_log.logger.removeHandler(handler)
        run_log.logger.setLevel(level)
        bars.close()


class _Bars:
    """One for the run and for each of its baselines, from their first batch on."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def show(self, now: Progress) -> None:
        from tqdm.auto import tqdm

        if now.run not in self._bars:
            self._bars[now.run] = tqdm(total=now.steps, unit=" steps")
        bar = self._bars[now.run]
        bar.set_description(f"{now.run + ' ' if now.run else ''}epoch {now.epoch}/{now.epochs}", refresh=False)
        numbers = {"loss": now.loss, "top-1": now.top1, "img/s": now.images_per_second}
        bar.set_postfix({key: f"{value:.3g}" for key, value in numbers.items() if value is not None}, refresh=False)
        bar.update(now.step - bar.n)
        bar.refresh()

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()


class _AboveTheBars(logging.Handler):
    """Writes what a run says so that it doesn't tear a bar, unless the program shows its log anyway."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm.auto import tqdm

        if not logging.getLogger().handlers:
            tqdm.write(record.getMessage())
