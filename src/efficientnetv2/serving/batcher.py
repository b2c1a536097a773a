"""Dynamic batching: inputs of concurrent requests are computed together, by one thread."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")

# Weight of the last batch in the mean time of an image. Ours.
_LAST = 0.2
# Longest time to ask a client to wait, in seconds. Ours.
_MAX_RETRY_S = 60


class QueueFullError(Exception):
    """There are more inputs than the queue holds. retry_after: seconds until there is likely room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class _Waiting(NamedTuple, Generic[Item, Result]):
    item: Item
    result: asyncio.Future[Result]
    since: float  # by the clock of the event loop


class Batcher(Generic[Item, Result]):
    """Collects inputs into batches. All methods belong to one event loop; `compute` runs in a thread.

    A batch starts as soon as it is full, or its first input has waited `max_wait_s`. If the thread still computes the
    batch before, the next batch starts when the thread is free. Inputs whose request was canceled are left out.

    Args:
        compute: From inputs to as many results. It is never called twice at a time.
        batch_size: Number of inputs of a batch, at most.
        max_wait_s: Seconds that an input waits for others, at most.
        queue: Number of reserved places, at most.
    """

    def __init__(
        self, compute: Callable[[Sequence[Item]], Sequence[Result]], *, batch_size: int, max_wait_s: float, queue: int
    ) -> None:
        self.batch_size, self.max_wait_s, self.queue = batch_size, max_wait_s, queue
        self.reserved = 0
        self.num_batches = self.num_items = 0
        self.compute_s = 0.0
        self._compute = compute
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._is_computing = False
        self._seconds_each = 0.0

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Hold places in the queue for a request. Raises QueueFullError."""
        if self.reserved + count > self.queue:
            raise QueueFullError(min(_MAX_RETRY_S, max(1, math.ceil(self.reserved * self._seconds_each))))
        self.reserved += count
        try:
            yield
        finally:
            self.reserved -= count

    async def submit(self, item: Item) -> Result:
        """The result of an input, computed with others."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append(_Waiting(item, future, loop.time()))
        self._schedule()
        return await future

    async def run(self, function: Callable[[], Value]) -> Value:
        """Call a function in the thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        """End the thread after the work that it has, and then forget ``compute``, which may hold a model."""
        with suppress(RuntimeError):  # closed before
            self._thread.submit(self._forget)
        self._thread.shutdown(wait=False)

    def _forget(self) -> None:
        self._compute = lambda items: ()

    def _schedule(self) -> None:
        """Start a batch now or later."""
        while self._waiting and self._waiting[0].result.done():  # canceled
            self._waiting.popleft()
        if self._is_computing or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        wait_s = self._waiting[0].since + self.max_wait_s - loop.time()
        if len(self._waiting) >= self.batch_size or wait_s <= 0:
            self._start()
        elif self._timer is None:
            self._timer = loop.call_later(wait_s, self._start)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_computing:
            return
        batch: list[_Waiting[Item, Result]] = []
        while self._waiting and len(batch) < self.batch_size:
            if not (one := self._waiting.popleft()).result.done():
                batch.append(one)
        if batch:
            self._is_computing = True
            work = partial(self._timed, [one.item for one in batch])
            done = asyncio.get_running_loop().run_in_executor(self._thread, work)
            done.add_done_callback(partial(self._finish, batch))

    def _timed(self, items: Sequence[Item]) -> tuple[Sequence[Result], float]:
        started = time.perf_counter()
        results = self._compute(items)
        return results, time.perf_counter() - started

    def _finish(
        self, batch: Sequence[_Waiting[Item, Result]], done: asyncio.Future[tuple[Sequence[Result], float]]
    ) -> None:
        self._is_computing = False
        waiting = [(place, one.result) for place, one in enumerate(batch) if not one.result.done()]
        error = done.exception()
        if error is not None:
            for _, future in waiting:
                future.set_exception(error)
        else:
            results, seconds = done.result()
            self.num_batches, self.num_items = self.num_batches + 1, self.num_items + len(batch)
            self.compute_s += seconds
            each = seconds / len(batch)
            self._seconds_each = each if not self._seconds_each else (1 - _LAST) * self._seconds_each + _LAST * each
            for place, future in waiting:
                future.set_result(results[place])
        self._schedule()
