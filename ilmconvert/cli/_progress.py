"""What a command says on stderr while it works: a spinner on a terminal, and lines elsewhere if it takes long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import click

from ilmconvert.cli._global import shows_progress, speaks

#: Seconds that a command may take without a word where stderr is no terminal. A short one says nothing in a script.
PATIENCE = 10.0
#: Seconds from one line on the same step to the next.
EVERY = 30.0


class Say(Protocol):
    """Says what is going on; ``often`` marks what changes many times in one step, such as a count."""

    def __call__(self, text: str, *, often: bool = False) -> None: ...


@contextmanager
def progress(enabled: bool = True) -> Iterator[Say]:
    """Yields the function that says what is going on; after ``--quiet`` nobody hears it."""
    if not (enabled and speaks()):
        yield lambda text, *, often=False: None
    elif shows_progress():
        from rich.console import Console
        from rich.markup import escape

        with Console(stderr=True).status("starting") as status:
            yield lambda text, *, often=False: status.update(escape(text))
    else:
        lines = Lines()
        try:
            yield lines.say
        finally:
            lines.close()


class Lines:
    """A line for each step from :data:`PATIENCE` on; for counts inside of a step one every :data:`EVERY` seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text = self._said = ""
        self._start = time.monotonic()
        self._last = self._start - EVERY
        # a step that takes minutes has to be heard of while it goes on
        self._timer = threading.Timer(PATIENCE, self._print)
        self._timer.daemon = True
        self._timer.start()

    def say(self, text: str, *, often: bool = False) -> None:
        self._text = text
        now = time.monotonic()
        if now - self._start >= PATIENCE and not (often and now - self._last < EVERY):
            self._print()

    def close(self) -> None:
        """Say nothing more."""
        self._timer.cancel()

    def _print(self) -> None:
        with self._lock:
            if self._text != self._said:
                self._said, self._last = self._text, time.monotonic()
                to_stderr(self._text)


def to_stderr(text: str) -> None:
    """A line on stderr; above the bar or spinner, where rich shows one and has put its own file in stderr's place."""
    click.echo(text, file=sys.stderr)
