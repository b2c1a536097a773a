"""The page in a real browser predicts images in several ways, on a desktop and on a phone."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from tests.evaluation.test_report_in_browser import CHROMIUM
from tests.serving.browser import Browser
from tests.serving.model_files import NAMES, app_of, encoded, write_model

from efficientnetv2.inference.predictor import Predictor

KEY = "a-key-of-a-server-that-is-long"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the page is not opened in a browser"),
]


@pytest.fixture
def address(model, tmp_path):
    """The address of a server with two models and a key."""
    other = write_model(tmp_path / "other.safetensors", names=("a", "b"))
    with served(app_of({"tiny": model, "other": other}, api_keys=(KEY,), timeout=120)) as address:
        yield address


@contextmanager
def served(app):
    """The address of a server."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


PASTED = """(async () => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 40, height: 30});
  canvas.getContext('2d').fillRect(0, 0, 40, 30);
  const blob = await new Promise(done => canvas.toBlob(done));
  const data = new DataTransfer();
  data.items.add(new File([blob], 'NAME.png', {type: 'image/png'}));
  const event = EVENT;
  document.getElementById('drop').dispatchEvent(event);
})()"""
DROP = "new DragEvent('drop', {dataTransfer: data, bubbles: true})"
PASTE = "new ClipboardEvent('paste', {clipboardData: data, bubbles: true})"
STATUS = "(document.getElementById('status')?.textContent ?? '')"
OVER_THE_EDGE = """[...document.querySelectorAll('body *')]
  .filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(one => one.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("width", [390, 1200])
def test_page_predicts_images(address, model, tmp_path, width):
    content = encoded(1)
    (photo := tmp_path / "photo.jpg").write_bytes(content)
    (broken := tmp_path / "broken_with_a_rather_long_name_of_a_file_from_a_camera.jpg").write_bytes(b"text")
    (expected,) = Predictor(model, device="cpu")(content)
    with Browser(tmp_path / "profile", width) as browser:
        browser.call("Page.navigate", url=address)
        # Without a key, the page requests one, and the key field has the focus.
        browser.until("document.activeElement?.id === 'key'")
        browser.call("Input.insertText", text=KEY)
        browser.press("Tab")
        browser.run("document.activeElement.click()")
        browser.until(f"{STATUS}.startsWith('Ready')")
        assert browser.run("[...document.getElementById('model').options].map(one => one.value)") == ["tiny", "other"]
        browser.run("document.getElementById('explain').click()")
        browser.choose("#files", photo, broken)
        browser.until("document.querySelectorAll('.card meter, .card .error').length > 3")
        browser.until("document.querySelector('figure img')?.complete")
        shown = browser.run("[...document.querySelectorAll('.card li span:first-child')].map(one => one.textContent)")
        assert shown[0] == expected.label
        assert set(shown) == set(NAMES)
        assert browser.run("document.querySelector('meter').value") == pytest.approx(expected.probability, abs=1e-6)
        assert broken.name in browser.run("document.querySelector('.error').textContent")
        assert browser.run("[...document.images].filter(one => !one.alt).length") == 0
        for name, event in (("dropped", DROP), ("pasted", PASTE)):
            browser.run(PASTED.replace("NAME", name).replace("EVENT", event))
            browser.until(f"{STATUS}.startsWith('{name}.png')")
        assert browser.run(OVER_THE_EDGE) == []
        assert {url.partition(":")[0] for url in browser.requested()} <= {"http", "data", "blob"}
        assert all(url.startswith((address, "data:", "blob:")) for url in browser.requested())
        # The browser itself reports the missing key, and the file that is not an image.
        assert [one for one in browser.complaints() if "401" not in one and "415" not in one] == []
        browser.run("document.getElementById('clear').click()")
        assert browser.run("document.querySelectorAll('.card').length") == 0


@pytest.mark.parametrize(("route", "status"), [("/v2/models", 502), ("/predict", 413)])
def test_page_names_the_status_that_a_proxy_answers(model, tmp_path, route, status):
    app = app_of({"tiny": model}, timeout=120)

    async def proxy(scope, receive, send):
        if scope.get("path") != route:
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"<html>"})

    (photo := tmp_path / "photo.jpg").write_bytes(encoded(1))
    with served(proxy) as address, Browser(tmp_path / "profile", 1200) as browser:
        browser.call("Page.navigate", url=address)
        if route == "/predict":
            browser.until(f"{STATUS}.startsWith('Ready')")
            browser.choose("#files", photo)
        browser.until(f"{STATUS}.endsWith('HTTP status {status}')")


def test_page_can_be_used_with_the_keyboard(address, tmp_path):
    with Browser(tmp_path / "profile", 1200) as browser:
        browser.call("Page.navigate", url=address)
        browser.until("document.activeElement?.id === 'key'")
        browser.run("document.activeElement.blur()")
        reached, outlines = [], []
        for _ in range(6):
            browser.press("Tab")
            time.sleep(0.02)
            reached.append(browser.run("document.activeElement?.id"))
            outlines.append(browser.run("getComputedStyle(document.querySelector('#files + label')).outlineStyle"))
        assert {"files", "photo", "key"} <= set(reached)
        # The file field is hidden, so its label shows the focus.
        assert [outline != "none" for outline in outlines] == [one == "files" for one in reached]
