"""What a group of tasks failed of, as one exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_failure(kind: type[Exception]) -> Iterator[None]:
    """Raise a failure of a kind by itself where a task group raises it in a group; with others beside it the group stays.

    (An `except*` will not do: what is raised inside is put into a group again, by all Pythons but a few.)
    """
    try:
        yield
    except BaseExceptionGroup as failures:
        matching, others = failures.split(kind)
        if matching is None or others is not None:
            raise
        raise matching.exceptions[0] from None
