"""Several pieces of work at once, for measurements in which nothing is a time or the work itself asks for quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from typing import TypeVar

Asked, Answer = TypeVar("Asked"), TypeVar("Answer")


def at_once(
    asked: Sequence[Asked],
    work: Callable[[Asked], Answer],
    workers: int,
    pool: Callable[[int], Executor] = ThreadPoolExecutor,
) -> Iterator[tuple[Asked, Answer]]:
    """What comes of each, as it ends; closed, or ended by an error, it begins no more of them.

    Args:
        asked: what each piece is about.
        work: done for each.
        workers: so many at a time; one does them in this thread, in order.
        pool: made of ``workers``; threads will do where the work is done in processes of its own.
    """
    if workers == 1:
        for one in asked:
            yield one, work(one)
        return
    with pool(workers) as executor:
        begun = {executor.submit(work, one): one for one in asked}
        try:
            for ended in as_completed(begun):
                yield begun[ended], ended.result()
        finally:
            executor.shutdown(cancel_futures=True)
