"""Exit codes, and the one line that an error is."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import click

from ilmconvert.errors import one_line

EXIT_FAILED = 1
EXIT_ERROR = 2
EXIT_NOT_COMPARED = 3
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141

#: Every exit code of every command, for help and documentation.
EXIT_CODES = {
    0: "Done.",
    EXIT_FAILED: "A check failed: a criterion of verify, or a model of sweep.",
    EXIT_ERROR: "The command failed; one line on stderr says why and what to do.",
    EXIT_NOT_COMPARED: "verify found no source, so nothing was compared with the original.",
    EXIT_INTERRUPTED: "Interrupted by Ctrl-C.",
    EXIT_PIPE: "The program that read the output is gone, as in `| head`.",
}


class Interrupted(click.ClickException):
    """Ctrl-C, with a word on how to go on."""

    exit_code = EXIT_INTERRUPTED


def fail(message: object, code: int = EXIT_ERROR) -> NoReturn:
    """End with one line on stderr."""
    click.echo(f"Error: {one_line(message)}", err=True)
    sys.exit(code)


@contextmanager
def quiet_broken_pipe() -> Iterator[None]:
    """End without a word where nobody reads stdout any more, and without Python's own attempt to write the rest."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        with suppress(OSError, ValueError):  # not a real file, so there is nothing to redirect
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PIPE)
