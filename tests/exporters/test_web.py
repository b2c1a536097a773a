"""The web page with a model: its files, and its predictions in a real browser."""

import json
import tarfile
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from tests.evaluation.test_report_in_browser import CHROMIUM
from tests.exporters.conftest import NAMES, small_model
from tests.messages import mentioning, mentions
from tests.pages import ROOT
from tests.serving.browser import Browser
from tests.serving.test_page_in_browser import OVER_THE_EDGE

import efficientnetv2 as ev2
from efficientnetv2.exporters.web import write_page
from efficientnetv2.preprocessing import Bands, Preprocessing

pytest.importorskip("onnxruntime")

# The file of `npm pack onnxruntime-web`, created by .ci/run.
RUNTIME = max((ROOT / "build").glob("onnxruntime-web-*.tgz"), default=None)
in_browser = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the page is not opened in a browser"),
    pytest.mark.skipif(RUNTIME is None, reason="no build/onnxruntime-web-*.tgz: the page is not opened in a browser"),
]
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
STATUS = "document.getElementById('status')?.textContent ?? ''"


@pytest.fixture
def package(tmp_path):
    """A package with the two files of the runtime, and their content."""
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    for name in FILES:
        (folder / "dist" / name).write_text(name)
    return folder


def _saved(folder, **options):
    path = folder / "model" / "model.safetensors"
    path.parent.mkdir()
    ev2.save(path, small_model(**options))
    return path


def test_folder_has_all_files_of_the_page(package, photos, tmp_path):
    packed = tmp_path / "onnxruntime-web-1.0.0.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(package, "package")
    model = _saved(tmp_path, activation="sigmoid")
    made = ev2.export(model, "web", data=photos, runtime=package, half=True)
    assert made.agreement.label_agreement == 1
    copied = sorted(file.read_text() for file in (made.path / "onnxruntime-web").iterdir())
    assert copied == sorted(FILES)
    info = json.loads((made.path / "model.json").read_text())
    assert info["names"] == list(NAMES)
    assert info["problem_type"] == "multi_label_classification"
    first = (made.path / "index.html").read_bytes()
    with pytest.raises(ev2.InputError, match=mentioning("exists")):
        ev2.export(model, "web", data=photos, runtime=packed)
    ev2.export(model, "web", data=photos, runtime=packed, overwrite=True)
    assert (made.path / "index.html").read_bytes() == first
    assert not (made.path.parent / "classify.py").exists()


def test_invalid_runtime_is_refused_with_the_command_to_download_it(package, photos, tmp_path):
    model = _saved(tmp_path)
    (text := tmp_path / "text.tgz").write_text("text")
    with tarfile.open(empty := tmp_path / "empty.tgz", "w:gz"):
        pass
    (cut := tmp_path / "cut.tgz").write_bytes(empty.read_bytes()[:30])
    (package / "dist" / FILES[1]).unlink()
    (package / "dist" / FILES[1]).mkdir()
    with tarfile.open(folder := tmp_path / "folder.tgz", "w:gz") as archive:
        archive.add(package, "package")
    (package / "dist" / FILES[1]).rmdir()
    for runtime in (None, package, text, empty, cut, folder, tmp_path / "missing"):
        named = [] if runtime is None else [str(runtime)]
        with pytest.raises(ev2.InputError, match=mentioning("npm pack onnxruntime-web", *named)):
            ev2.export(model, "web", data=photos, runtime=runtime)
    with pytest.raises(ev2.InputError, match=mentioning("runtime", "web")):
        ev2.export(model, data=photos, runtime=package)
    assert [file.name for file in model.parent.iterdir()] == [model.name]


def test_model_of_raster_bands_is_refused(package, photos, tmp_path):
    own = Preprocessing(image_size=32, bands=Bands((1, 2, 3)))
    with pytest.raises(ev2.InputError, match=mentioning("bands", "web")):
        ev2.export(_saved(tmp_path, preprocessing=own), "web", data=photos, runtime=package)


@contextmanager
def _served(folder):
    """Serve a folder as `python -m http.server` does, and yield its address."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the page is not opened in a browser")
def test_page_removes_its_listeners_after_a_prediction(photos, tmp_path):
    (folder := tmp_path / "page").mkdir()
    write_page(folder, small_model(), {})
    (folder / "worker.js").write_text("""self.onmessage = ({ data, ports }) => ports[0].postMessage(
      data ? { label: "maize", probability: 1, top: [] } : { name: "model", num_classes: 3 });""")
    files = sorted(photos.iterdir())
    with _served(folder) as address, Browser(tmp_path / "profile", 1280) as browser:
        browser.call("Page.navigate", url=address)
        browser.until(f"({STATUS}).startsWith('Ready')")
        browser.choose("#files", *files)
        browser.until(f"document.querySelectorAll('.card ol').length === {len(files)}")
        worker = browser.call("Runtime.evaluate", expression="worker")["result"]
        assert worker["className"] == "Worker"
        found = browser.call("DOMDebugger.getEventListeners", objectId=worker["objectId"])
    assert found["listeners"] == []


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the page is not opened in a browser")
def test_page_shows_all_labels_and_marks_unknown_images(tmp_path):
    found = {
        "none.png": {"labels": []},
        "two.png": {"labels": ["maize", "forest"]},
        "one.png": {"labels": ["maize"], "is_unknown": False},
        "unknown.png": {"labels": ["maize"], "is_unknown": True},
    }
    (folder := tmp_path / "page").mkdir()
    write_page(folder, small_model(), {})
    (folder / "worker.js").write_text(f"""const found = {json.dumps(found)};
      const base = {{ label: "maize", probability: 0.9, top: [] }}, model = {{ name: "model", num_classes: 3 }};
      self.onmessage = ({{ data, ports }}) =>
        ports[0].postMessage(data ? {{ ...base, ...found[data.name] }} : model);""")
    for name in found:
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    with _served(folder) as address, Browser(tmp_path / "profile", 390) as browser:
        browser.call("Page.navigate", url=address)
        browser.until(f"({STATUS}).startsWith('Ready')")
        shown, statuses = {}, {}
        for name in found:
            browser.choose("#files", tmp_path / name)
            statuses[name] = browser.until(f"({STATUS}).startsWith('{name}') && ({STATUS})")
            notes = "document.querySelectorAll('.card:first-child .note')"
            shown[name] = browser.run(f"[...{notes}].map(note => note.textContent)")
        assert browser.complaints() == []
    assert shown["none.png"] == ["No label."]
    assert shown["two.png"] == ["Labels: maize, forest."]
    assert shown["one.png"] == []
    assert mentions(shown["unknown.png"], "Unknown")
    for name, notes in shown.items():
        assert mentions(statuses[name], name, *notes, "maize", "90.0")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the page is not opened in a browser")
@pytest.mark.parametrize(
    ("activation", "probabilities", "labels"),
    [
        ("sigmoid", [0.1, 0.6, 0.9], [NAMES[2], NAMES[1]]),
        ("sigmoid", [0.1, 0.3, 0.2], []),
        ("softmax", [0.3, 0.4, 0.3], [NAMES[1]]),
    ],
)
def test_worker_returns_the_labels_of_a_prediction(tmp_path, activation, probabilities, labels):
    runtime = f"""export const env = {{ wasm: {{}} }};
      export class Tensor {{}}
      const data = new Float32Array({probabilities});
      const session = {{ run: async () => ({{ probabilities: {{ data }} }}) }};
      export const InferenceSession = {{ create: async () => session }};"""
    (folder := tmp_path / "page").mkdir()
    (folder / "model.onnx").touch()
    files = {"ort.wasm.bundle.min.js": runtime.encode(), "ort-wasm-simd-threaded.wasm": b""}
    write_page(folder, small_model(activation=activation), files)
    with _served(folder) as address, Browser(tmp_path / "profile", 390) as browser:
        browser.call("Page.navigate", url=address)
        browser.until(f"({STATUS}).startsWith('Ready')")
        found = browser.run("""new Promise(done => document.createElement('canvas').toBlob(done))
          .then(blob => askWorker(new File([blob], 'a.png')))""")
    assert found["labels"] == labels
    assert found["label"] == NAMES[int(np.argmax(probabilities))]


class TestInBrowser:
    pytestmark = in_browser

    @pytest.mark.parametrize(("crop", "width"), [("squash", 390), ("center", 1280), ("border", 1280)])
    def test_page_predicts_like_the_model(self, crop, width, photos, tmp_path):
        # Large photos are averaged over blocks of pixels; transparent pixels become white.
        rng = np.random.default_rng(0)
        large, clear = tmp_path / "large.jpg", tmp_path / "clear.png"
        Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)).resize((2003, 1501)).save(large, quality=90)
        Image.fromarray(rng.integers(0, 256, (9, 12, 4)).astype(np.uint8)).resize((120, 90)).save(clear)
        files = [*sorted(photos.iterdir()), large, clear]
        (broken := tmp_path / "broken.jpg").write_text("text")
        model = _saved(tmp_path, preprocessing=Preprocessing(image_size=32, crop_mode=crop))
        made = ev2.export(model, "web", data=photos, runtime=RUNTIME)
        with _served(made.path) as address, Browser(tmp_path / "profile", width) as browser:
            browser.call("Page.navigate", url=address)
            browser.until(f"({STATUS}).startsWith('Ready')")
            browser.choose("#files", broken, *files)
            browser.until(f"document.querySelectorAll('.card ol').length === {len(files)}")
            found = browser.run("""Object.fromEntries([...document.querySelectorAll('.card')].map(card => [
              card.querySelector('h2').textContent,
              [...card.querySelectorAll('li')].map(row => [
                row.querySelector('span').textContent, row.querySelector('meter').value
              ])
            ]))""")
            assert browser.run("document.querySelectorAll('.error').length") == 1
            assert browser.run(OVER_THE_EDGE) == []
            assert all(url.startswith((address, "data:", "blob:")) for url in browser.requested())
            assert browser.complaints() == []
        assert found.pop(broken.name) == []
        for file, expected in zip(files, ev2.Predictor(model)(files), strict=True):
            assert found[file.name][0][0] == expected.label, file
            assert dict(found[file.name]) == pytest.approx(expected.probabilities, abs=0.05), file

    def test_page_states_why_it_does_not_work(self, photos, tmp_path):
        made = ev2.export(_saved(tmp_path), "web", data=photos, runtime=RUNTIME)
        with _served(made.path) as address, Browser(tmp_path / "profile", 1280) as browser:
            browser.call("Page.navigate", url=f"{made.path.as_uri()}/index.html")
            browser.until(f"({STATUS}).includes('python -m http.server')")
            runtime = [f"onnxruntime-web/{file.name}" for file in (made.path / "onnxruntime-web").iterdir()]
            for missing in (*runtime, "model.json", "model.onnx", "worker.js"):
                file = (made.path / missing).rename(tmp_path / "aside")
                browser.call("Network.clearBrowserCache")
                browser.call("Page.navigate", url=address)
                browser.until(f"({STATUS}).includes('{missing}')")
                file.rename(made.path / missing)
