"""Run several tasks at once: for benchmarks that measure no time, or whose tasks wait for a quiet machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from typing import TypeVar

Task, Result = TypeVar("Task"), TypeVar("Result")


def at_once(
    tasks: Sequence[Task],
    work: Callable[[Task], Result],
    workers: int,
    pool: Callable[[int], Executor] = ThreadPoolExecutor,
) -> Iterator[tuple[Task, Result]]:
    """Yield each task with its result as it ends. After an error, or if closed, no further task starts.

    Args:
        tasks: Arguments of ``work``.
        work: Function of a task.
        workers: Number of tasks at a time. 1 runs them in this thread, in order.
        pool: Makes an executor of ``workers``. Threads suffice if ``work`` starts its own processes.
    """
    if workers == 1:
        for task in tasks:
            yield task, work(task)
        return
    with pool(workers) as executor:
        futures = {executor.submit(work, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            executor.shutdown(cancel_futures=True)
