"""Dynamic batching: which inputs are computed together, in which order, and which are not computed."""

import asyncio
import threading

import pytest

from efficientnetv2.serving.batcher import Batcher, QueueFullError


class Engine:
    """Doubles numbers and records its batches. It can be paused."""

    def __init__(self, *, is_held=False):
        self.batches, self.free = [], threading.Event()
        if not is_held:
            self.free.set()

    def __call__(self, items):
        self.batches.append(list(items))
        self.free.wait(10)
        return [2 * item for item in items]

    async def begun(self, count=1):
        while len(self.batches) < count:
            await asyncio.sleep(0.001)


def batcher_of(engine, *, batch_size=4, max_wait_s=0.02, queue=100):
    return Batcher(engine, batch_size=batch_size, max_wait_s=max_wait_s, queue=queue)


async def computing():
    """Return an engine that computes its first input, its batcher, and the result of that input."""
    engine = Engine(is_held=True)
    batcher = batcher_of(engine, max_wait_s=0)
    first = asyncio.create_task(batcher.submit(1))
    await engine.begun()
    return engine, batcher, first


def test_simultaneous_inputs_are_computed_together():
    async def scenario():
        engine = Engine()
        batcher = batcher_of(engine, batch_size=4)
        results = await asyncio.gather(*(batcher.submit(number) for number in range(10)))
        batcher.close()
        assert results == [2 * number for number in range(10)]
        assert engine.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert (batcher.num_batches, batcher.num_items) == (3, 10)

    asyncio.run(scenario())


def test_single_input_waits_for_a_limited_time_and_a_full_batch_does_not_wait():
    async def scenario():
        loop, engine = asyncio.get_running_loop(), Engine()
        batcher = batcher_of(engine, batch_size=2, max_wait_s=0.05)
        started = loop.time()
        assert await batcher.submit(1) == 2
        assert loop.time() - started >= 0.045
        batcher.max_wait_s = 60
        assert await asyncio.wait_for(asyncio.gather(batcher.submit(1), batcher.submit(2)), 10) == [2, 4]
        batcher.close()

    asyncio.run(scenario())


def test_inputs_are_collected_while_a_batch_is_computed():
    async def scenario():
        engine, batcher, first = await computing()
        others = [asyncio.create_task(batcher.submit(number)) for number in (2, 3)]
        await asyncio.sleep(0.01)
        engine.free.set()
        assert await asyncio.gather(first, *others) == [2, 4, 6]
        assert engine.batches == [[1], [2, 3]]
        batcher.close()

    asyncio.run(scenario())


def test_canceled_input_is_not_computed():
    async def scenario():
        engine, batcher, first = await computing()
        canceled, other = (asyncio.create_task(batcher.submit(number)) for number in (2, 3))
        await asyncio.sleep(0.01)
        canceled.cancel()
        await asyncio.sleep(0.01)
        engine.free.set()
        assert (await first, await other) == (2, 6)
        assert engine.batches == [[1], [3]]
        batcher.close()

    asyncio.run(scenario())


def test_error_affects_each_input_of_its_batch_and_no_other():
    def compute(items):
        if 1 in items:
            raise ValueError("no")
        return items

    async def scenario():
        batcher = batcher_of(compute, batch_size=2)
        results = await asyncio.gather(*(batcher.submit(number) for number in range(4)), return_exceptions=True)
        assert [type(result) for result in results[:2]] == [ValueError, ValueError]
        assert results[2:] == [2, 3]
        batcher.close()

    asyncio.run(scenario())


def test_reserved_places_are_limited_and_returned():
    batcher = batcher_of(Engine(), queue=3)
    with batcher.reserve(2):
        with pytest.raises(QueueFullError) as full, batcher.reserve(2):
            pass
        assert full.value.retry_after >= 1
        with batcher.reserve(1):
            assert batcher.reserved == 3
    assert batcher.reserved == 0
    batcher.close()


def test_waiting_time_follows_the_speed():
    async def scenario():
        batcher = batcher_of(Engine(), queue=100)
        await batcher.submit(1)
        batcher._seconds_each = 0.1
        with batcher.reserve(95), pytest.raises(QueueFullError) as full, batcher.reserve(10):
            pass
        assert full.value.retry_after == 10
        batcher.close()

    asyncio.run(scenario())
