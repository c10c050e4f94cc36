"""A bar for those who pass ``progress=True``: of tqdm, which terminals and notebooks show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Told = TypeVar("Told", bound=Callable[..., None])


@contextmanager
def count_bar(progress: Told | bool | None, unit: str) -> Iterator[Told | Callable[..., None] | None]:
    """The function to call with a count: the caller's own, one that moves a bar for True, None for None and False.

    The bar's function takes what is done, how much there is of it in all, where that is known, and what is being done.

    >>> with count_bar(None, "images") as told:
    ...     print(told)
    None
    """
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(unit=f" {unit}") as bar:

        def show(done: int, total: int | None = None, what: str | None = None) -> None:
            if what is not None:
                bar.set_description(what, refresh=False)
            if done < bar.n:  # what is counted begins again
                bar.reset()
            bar.total = total
            bar.update(done - bar.n)
            bar.refresh()

        yield show
