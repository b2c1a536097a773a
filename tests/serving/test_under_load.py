"""Simultaneous requests: shared batches, a full queue, a reload without lost requests, and time limits."""

import asyncio
import gc
import threading
import time
import weakref
from contextlib import contextmanager

import httpx2
import numpy as np
import pytest
from PIL import Image
from tests.messages import mentioning, mentions
from tests.serving.model_files import NAMES, app_of, encoded, write_model

from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.serving import request_images
from efficientnetv2.serving.served_model import ServedModel
from efficientnetv2.utils.errors import InputError, non_finite_error

JPEG = encoded(0)
KEY = "a-key-of-a-server-that-is-long"


def run(app, scenario):
    """Run a scenario with a client of an application, and end its threads."""

    async def with_client():
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client:
            await asyncio.wait_for(scenario(client), 30)

    try:
        asyncio.run(with_client())
    finally:
        app.state.service.close()


def send(client, count=1, **options):
    """Start a request with some images."""
    files = [("image", ("a.jpg", JPEG))] * count
    return asyncio.create_task(client.post("/predict", files=files, **options))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.002)


@contextmanager
def held(model):
    """Pause the engine of a model, and yield the sizes of its batches."""
    sizes, free, predict = [], threading.Event(), model.predictor.predict_decoded

    def wait(images, *rest):
        sizes.append(len(images))
        free.wait(20)
        return predict(images, *rest)

    model.predictor.predict_decoded = wait
    try:
        yield sizes
    finally:
        free.set()


def test_simultaneous_requests_share_batches(model):
    app = app_of(model, batch_size=8, max_wait_ms=200)
    served = app.state.service.models.get("tiny")

    async def scenario(client):
        responses = await asyncio.gather(*(send(client) for _ in range(16)))
        assert {response.status_code for response in responses} == {200}
        assert (served.batcher.num_items, served.batcher.num_batches) == (16, 2)

    run(app, scenario)


def test_full_queue_refuses_requests_until_it_has_space(model):
    app = app_of(model, queue=3, max_images=3)
    served = app.state.service.models.get("tiny")

    async def scenario(client):
        with held(served) as sizes:
            accepted = [send(client), send(client, 2)]
            await until(lambda: served.batcher.reserved == 3 and sizes)
            refused = await client.post("/predict", files={"image": JPEG})
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert mentions(refused.json()["error"], "tiny", "full")
            assert (await client.get("/v2/health/ready")).status_code == 200
        assert [response.status_code for response in await asyncio.gather(*accepted)] == [200, 200]
        assert (await send(client)).status_code == 200

    run(app, scenario)


def test_request_that_exceeds_the_rest_of_the_queue_is_refused_completely(model):
    app = app_of(model, queue=3, max_images=3)
    served = app.state.service.models.get("tiny")

    async def scenario(client):
        with held(served):
            accepted = send(client, 2)
            await until(lambda: served.batcher.reserved == 2)
            assert (await send(client, 2)).status_code == 429
            assert served.batcher.reserved == 2
        assert (await accepted).status_code == 200

    run(app, scenario)


def test_predictions_that_take_too_long_are_aborted(model):
    app = app_of(model, timeout=1)
    served = app.state.service.models.get("tiny")

    async def scenario(client):
        with held(served):
            late = await send(client)
            assert late.status_code == 503
            assert "Retry-After" in late.headers
            assert served.batcher.reserved == 0
        assert (await send(client)).status_code == 200

    run(app, scenario)


def _post(receive, sent, query=b""):
    """Return the arguments of an ASGI application for a raw request."""
    scope = {
        "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": query,
        "headers": [(b"content-type", b"image/jpeg"), (b"transfer-encoding", b"chunked")], "http_version": "1.1",
        "scheme": "http", "server": ("server", 80), "client": ("client", 1), "root_path": "",
        "asgi": {"version": "3.0"},
    }  # fmt: skip

    async def send_message(message):
        sent.append(message)

    return scope, receive, send_message


def test_endless_body_is_aborted(model):
    app = app_of(model, timeout=1)

    async def scenario(client):
        async def receive():
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": b"x", "more_body": True}

        sent = []
        await app(*_post(receive, sent))
        assert sent[0]["status"] == 408
        assert (b"connection", b"close") in sent[0]["headers"]
        assert (await send(client)).status_code == 200

    run(app, scenario)


def test_images_of_a_disconnected_client_are_not_computed(model):
    app = app_of(model)
    served = app.state.service.models.get("tiny")

    async def scenario(client):
        hang_up, messages = asyncio.Event(), [{"type": "http.request", "body": JPEG, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await hang_up.wait()
            return {"type": "http.disconnect"}

        with held(served) as sizes:
            first = send(client)
            await until(lambda: sizes)
            gone = asyncio.create_task(app(*_post(receive, [])))
            await until(lambda: served.batcher.reserved == 2)
            hang_up.set()
            await gone
            assert served.batcher.reserved == 1
        assert (await first).status_code == 200
        assert (await send(client)).status_code == 200
        assert sizes == [1, 1]

    run(app, scenario)


def test_client_that_disconnects_during_its_body_is_removed(model):
    app = app_of(model)

    async def scenario(client):
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"x", "more_body": True}]

        async def receive():
            return messages.pop()

        await app(*_post(receive, []))
        assert app.state.service.intake.buffered == 0
        assert (await send(client)).status_code == 200

    run(app, scenario)


def labels(response):
    return {one["label"] for one in response.json()["predictions"][0]["top"]}


def test_model_is_reloaded_without_losing_a_request(tmp_path):
    file = write_model(tmp_path / "tiny.safetensors")
    app = app_of(file)
    models = app.state.service.models
    earlier = models.get("tiny")

    async def scenario(client):
        with held(earlier) as sizes:
            before = send(client)
            await until(lambda: sizes)
            write_model(file, names=("a", "b"), seed=1)
            await models.reload("tiny")
            assert labels(await send(client)) == {"a", "b"}
        response = await before
        assert (response.status_code, labels(response)) == (200, set(NAMES))
        assert models.num_reloads == 1
        with pytest.raises(RuntimeError):  # the thread of the earlier model has ended
            await earlier.batcher.run(lambda: None)

    run(app, scenario)


def test_reloaded_model_frees_the_earlier_one_at_once(tmp_path):
    """Waiting for the garbage collector would keep several models in memory."""
    app = app_of(write_model(tmp_path / "tiny.safetensors"))
    models = app.state.service.models
    network = weakref.ref(models.get("tiny").predictor.network)

    async def scenario(client):
        await send(client)
        gc.disable()
        try:
            await models.reload("tiny")
            await until(lambda: network() is None)
        finally:
            gc.enable()

    run(app, scenario)


def test_invalid_model_keeps_the_earlier_model(tmp_path):
    file = write_model(tmp_path / "tiny.safetensors")
    app = app_of(file, api_keys=(KEY,))
    load, key = "/v2/repository/models/tiny/load", {"Authorization": f"Bearer {KEY}"}

    async def scenario(client):
        file.write_bytes(b"damaged")
        with pytest.raises(InputError, match=mentioning(str(file))):
            await app.state.service.models.reload("tiny")
        response = await client.post(load, headers=key)
        assert response.status_code == 400
        assert mentions(response.json()["error"], str(file))
        await app.state.service.models.reload_all()
        assert labels(await send(client, headers=key)) == set(NAMES)
        write_model(file, names=("a", "b"))
        assert (await client.post(load, headers=key)).status_code == 200
        assert labels(await send(client, headers=key)) == {"a", "b"}
        assert (await client.post(load)).status_code == 401

    run(app, scenario)


def test_models_cannot_be_loaded_by_http_without_keys(model):
    app = app_of(model)

    async def scenario(client):
        assert (await client.post("/v2/repository/models/tiny/load")).status_code == 403

    run(app, scenario)


def test_reload_without_heat_maps_during_a_request_refuses_heat_maps(model, monkeypatch):
    app = app_of(model)

    async def scenario(client):
        async def receive():
            monkeypatch.setattr(ServedModel, "explains", False)
            return {"type": "http.request", "body": JPEG, "more_body": False}

        sent = []
        await app(*_post(receive, sent, b"explain=true"))
        assert sent[0]["status"] == 400
        assert mentions(sent[1]["body"].decode(), "tiny", "heat maps")

    run(app, scenario)


def test_image_without_finite_outputs_fails_alone(model):
    app = app_of(model, batch_size=8, max_wait_ms=200)
    served = app.state.service.models.get("tiny")
    predict, sizes = served.predictor.predict_decoded, []

    def broken(images, *rest):
        sizes.append(len(images))
        if not all(image.any() for image in images):
            raise non_finite_error(1, len(images), 0)
        return predict(images, *rest)

    served.predictor.predict_decoded = broken
    black = encoded(Image.fromarray(np.zeros((20, 20, 3), np.uint8)), "PNG")

    async def scenario(client):
        others = [send(client) for _ in range(3)]
        refused = await client.post("/predict", files={"image": ("black.png", black)})
        assert [response.status_code for response in await asyncio.gather(*others)] == [200] * 3
        assert refused.status_code == 422
        assert mentions(refused.json()["error"], "black.png", "NaN")
        assert sizes == [4, 1, 1, 1, 1]

    run(app, scenario)


def test_model_without_finite_outputs_is_not_served(model, monkeypatch):
    def broken(self, images, *rest):
        raise non_finite_error(len(images), len(images), 0)

    monkeypatch.setattr(Predictor, "predict_decoded", broken)
    with pytest.raises(InputError, match=mentioning("NaN")):
        app_of(model)


def test_json_is_parsed_one_body_at_a_time(model, monkeypatch):
    app, running, most = app_of(model), [], []
    parse = request_images.parse

    def slow(*args):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        try:
            return parse(*args)
        finally:
            running.pop()

    monkeypatch.setattr(request_images, "parse", slow)

    async def scenario(client):
        tensor = {"name": "images", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [9] * 12}
        infer = [client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}) for _ in range(4)]
        predict = [client.post("/predict", json={"image": "no image"}) for _ in range(4)]
        statuses = [response.status_code for response in await asyncio.gather(*infer, *predict)]
        assert statuses == [200] * 4 + [400] * 4
        assert most == [1] * 8

    run(app, scenario)


def test_body_that_is_not_parsed_in_time_can_be_sent_again(model, monkeypatch):
    app, free = app_of(model, timeout=1), threading.Event()
    monkeypatch.setattr(request_images, "parse", lambda *_: free.wait(20))

    async def scenario(client):
        response = await client.post("/predict", json={"image": "no image"})
        free.set()
        assert response.status_code == 503
        assert "Retry-After" in response.headers

    run(app, scenario)
