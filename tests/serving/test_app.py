"""The routes of the server: predictions, the inference protocol, access, the page, and metrics."""

import base64
import hashlib
import io
import json
import re
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from tests.messages import mentioning, mentions
from tests.serving.model_files import NAMES, app_of, encoded, pixels, write_model
from typer.testing import CliRunner

import efficientnetv2 as ev2
from efficientnetv2 import serving
from efficientnetv2.cli.main import app
from efficientnetv2.models.unknown import UnknownDetector
from efficientnetv2.serving.options import ServerOptions, name_models, read_api_keys

KEY = "a-key-of-a-server-that-is-long"


def infer_body(*images, **more):
    data = [base64.b64encode(one).decode() for one in images]
    return {"inputs": [{"name": "images", "shape": [len(data)], "datatype": "BYTES", "data": data}], **more}


def test_predictions_equal_those_of_predict(client, model, tmp_path):
    color = Image.fromarray(pixels(1))
    deep = Image.fromarray(pixels(2)[..., 0].astype(np.uint16) * 256)
    files = {
        "plain.jpg": encoded(3),
        "turned.jpg": encoded(color, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
        "cmyk.jpg": encoded(color.convert("CMYK")),
        "alpha.png": encoded(color.convert("RGBA"), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "moving.gif": encoded(color, "GIF", save_all=True, append_images=[Image.fromarray(pixels(4))]),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    table = ev2.predict(model, tmp_path, device="cpu", engine="torch").set_index("path")
    found = client.post("/predict", files=[("image", item) for item in files.items()]).json()["predictions"]
    assert len({one["label"] for one in found}) > 1
    for name, one in zip(files, found, strict=True):
        (row,) = (table.loc[path] for path in table.index if path.endswith(name))
        assert one["label"] == row["predicted_label"]
        assert one["probability"] == pytest.approx(row["probability"], abs=1e-6)


def test_all_ways_to_send_an_image_give_the_same_prediction(client):
    content = encoded(5, "PNG")
    text = base64.b64encode(content).decode()
    responses = [
        client.post("/predict", files={"file": ("a.png", content)}),
        client.post("/predict", content=content, headers={"Content-Type": "image/png"}),
        client.post("/predict", content=content, headers={"Content-Type": "application/octet-stream"}),
        client.post("/predict", json={"image": text}),
        client.post("/predict", json={"images": [f"data:image/png;base64,{text}"]}),
    ]
    first = responses[0].json()
    assert [one.json() for one in responses] == [first] * len(responses)
    shares = client.post("/v2/models/tiny/infer", json=infer_body(content)).json()["outputs"][2]["data"]
    assert {one["label"]: one["probability"] for one in first["predictions"][0]["top"]} == pytest.approx(
        dict(zip(NAMES, shares, strict=True))
    )


def test_unknown_images_are_scored_if_the_model_supports_it(client, model, tmp_path):
    (plain,) = client.post("/predict", content=encoded(5), headers={"Content-Type": "image/jpeg"}).json()["predictions"]
    assert plain["unknown_score"] is plain["is_unknown"] is None
    loaded = ev2.load(model)
    known = ev2.Predictor(loaded).embed([pixels(seed) for seed in range(60)])
    loaded.unknown = UnknownDetector.fit(known, "val")
    ev2.save(tmp_path / "m.safetensors", loaded)
    with TestClient(app_of(tmp_path / "m.safetensors")) as scoring:
        response = scoring.post("/predict", content=encoded(5, "PNG"), headers={"Content-Type": "image/png"})
        (one,) = response.json()["predictions"]
    (expected,) = ev2.Predictor(tmp_path / "m.safetensors")(pixels(5))
    assert one["unknown_score"] == pytest.approx(expected.unknown_score, abs=1e-5)
    assert one["is_unknown"] is expected.is_unknown


def test_top_limits_the_classes_of_a_response(client):
    found = client.post("/predict?top=2", files={"image": encoded(0)}).json()["predictions"][0]
    assert [one["probability"] for one in found["top"]] == sorted(
        (one["probability"] for one in found["top"]), reverse=True
    )
    assert len(found["top"]) == 2
    assert found["top"][0]["label"] == found["label"]
    refused = client.post("/predict?top=0", files={"image": encoded(0)})
    assert refused.status_code == 400
    assert mentions(refused.json()["error"], "top")


def test_protocol_describes_the_server_and_its_models(client):
    assert client.get("/v2").json()["name"] == "efficientnetv2"
    assert client.get("/v2/health/live").json()["live"] is True
    assert client.get("/v2/health/ready").json()["ready"] is True
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    about = client.get("/v2/models/tiny").json()
    assert [one["name"] for one in about["inputs"]] == ["images"]
    assert {one["name"]: one["shape"] for one in about["outputs"]}["probabilities"] == [-1, len(NAMES)]
    assert about["parameters"]["classes"] == list(NAMES)


def test_protocol_predicts_files_and_pixels(client, model):
    images = [pixels(7), pixels(8)]
    files = infer_body(*(encoded(Image.fromarray(one), "PNG") for one in images), id="42")
    tensor = {"name": "images", "shape": [2, 40, 60, 3], "datatype": "UINT8", "data": np.stack(images).ravel().tolist()}
    by_file = client.post("/v2/models/tiny/infer", json=files).json()
    by_pixels = client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).json()
    expected = ev2.Predictor(model, device="cpu")(images)
    assert by_file["id"] == "42"
    for found in (by_file, by_pixels):
        label, _, shares = found["outputs"]
        assert label["data"] == [one.label for one in expected]
        assert shares["shape"] == [2, len(NAMES)]
        every = [value for one in expected for value in one.probabilities.values()]
        assert shares["data"] == pytest.approx(every, abs=1e-6)


@pytest.mark.parametrize("datatype", ["BYTES", "UINT8"])
def test_tensors_may_follow_the_json_in_binary(client, datatype):
    images = np.stack([pixels(7), pixels(8)])
    files = [encoded(Image.fromarray(one), "PNG") for one in images]
    expected = client.post("/v2/models/tiny/infer", json=infer_body(*files)).json()
    binary = b"".join(len(one).to_bytes(4, "little") + one for one in files)
    tensor = {"name": "images", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(binary)}}
    if datatype == "UINT8":
        binary, tensor = images.tobytes(), tensor | {"shape": list(images.shape), "datatype": "UINT8"}
    header = json.dumps({"inputs": [tensor]}).encode()

    def send(content, length):
        headers = {"Inference-Header-Content-Length": str(length), "Content-Type": "application/octet-stream"}
        return client.post("/v2/models/tiny/infer", content=content, headers=headers)

    assert send(header + binary, len(header)).json() == expected
    assert send(header + binary[:-1], len(header)).status_code == 400
    assert send(header, len(header)).status_code == 400
    assert send(header, len(header) + 1).status_code == 400
    assert send(header, "x").status_code == 400
    assert send(header, "9" * 5_000).status_code == 400


@pytest.mark.parametrize("one_by_one", [False, True])
def test_outputs_may_follow_the_json_in_binary(client, one_by_one):
    body = infer_body(encoded(0), encoded(1))
    expected = {one["name"]: one for one in client.post("/v2/models/tiny/infer", json=body).json()["outputs"]}
    wanted = {name: name != "probability" or not one_by_one for name in expected}
    parameters = {"binary_data_output": True}
    if one_by_one:
        body["outputs"] = [{"name": name, "parameters": {"binary_data": binary}} for name, binary in wanted.items()]
        parameters = {}
    response = client.post("/v2/models/tiny/infer", json=body | {"parameters": parameters})
    length = int(response.headers["Inference-Header-Content-Length"])
    header, rest = json.loads(response.content[:length]), response.content[length:]
    for one in header["outputs"]:
        assert ("data" in one) != wanted[one["name"]]
        if "data" in one:
            assert one == expected[one["name"]]
            continue
        tensor, rest = rest[: one["parameters"]["binary_data_size"]], rest[one["parameters"]["binary_data_size"] :]
        if one["datatype"] == "FP32":
            assert np.frombuffer(tensor, "<f4") == pytest.approx(expected[one["name"]]["data"])
        else:
            assert tensor == b"".join(struct.pack("<I", len(x)) + x.encode() for x in expected[one["name"]]["data"])
    assert rest == b""


def test_protocol_returns_the_requested_outputs(client):
    found = client.post("/v2/models/tiny/infer", json=infer_body(encoded(0), outputs=[{"name": "label"}])).json()
    assert [one["name"] for one in found["outputs"]] == ["label"]


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"outputs": [{"name": "logits"}]}, ("logits", "probabilities")),
        ({"outputs": [{"name": "label"}] * 9}, ("outputs", 8, 9)),
        ({"parameters": {str(number): 1 for number in range(65)}}, ("parameters", 64)),
        ({"parameters": {"binary_data_output": [[]]}}, ("parameters", "binary_data_output")),
        ({"inputs": []}, ("inputs",)),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["YQ=="]}]}, ("images", "x")),
        ({"inputs": [{"name": "images", "shape": [2], "datatype": "BYTES", "data": ["YQ=="]}]}, ("shape", 2, 1)),
        ({"inputs": [{"name": "images", "shape": [], "datatype": "BYTES", "data": ["YQ=="]}]}, ("shape",)),
        ({"inputs": [{"name": "images", "shape": [10**4000] * 8, "datatype": "BYTES", "data": ["YQ=="]}]}, ("shape",)),
        ({"inputs": [{"name": "images", "shape": [-1, -1], "datatype": "BYTES", "data": ["YQ=="]}]}, ("shape", 0)),
        ({"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": ["YQ=="] * 2}]}, ("shape", 1)),
        ({"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": [7]}]}, ("base64",)),
        ({"inputs": [{"name": "images", "shape": [1], "datatype": "FP32", "data": [1]}]}, ("datatype",)),
        ({"inputs": [{"name": "images", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [0, 1, 256]}]}, (0, 255)),
        ({"inputs": [{"name": "images", "shape": [1, 9, 9, 3], "datatype": "UINT8", "data": [0]}]}, (0, 255)),
        ({"inputs": [{"name": "images", "shape": [1], "datatype": "UINT8", "data": [0]}]}, ("(N, H, W, channels)",)),
        ({"inputs": [{"name": "images", "shape": [1, 8, 8, 5], "datatype": "UINT8", "data": [9] * 320}]}, (5,)),
    ],
)
def test_invalid_requests_of_the_protocol_are_refused(client, change, facts):
    response = client.post("/v2/models/tiny/infer", json=infer_body(encoded(0)) | change)
    assert response.status_code == 400
    assert mentions(response.json()["error"], *facts)


def test_unknown_model_is_not_found(client):
    for response in (
        client.get("/v2/models/other"),
        client.post("/v2/models/other/infer", json=infer_body(encoded(0))),
        client.post("/predict?model=other", files={"image": encoded(0)}),
    ):
        assert response.status_code == 404
        assert mentions(response.json()["error"], "other", "tiny")


def test_several_models_are_served_by_name(model, tmp_path):
    other = write_model(tmp_path / "other.safetensors", names=("a", "b"), seed=1)
    with TestClient(app_of({"first": model, "second": other})) as client:
        assert [one["name"] for one in client.get("/v2/models").json()["models"]] == ["first", "second"]
        assert client.post("/predict", files={"image": encoded(0)}).json()["model"] == "first"
        found = client.post("/predict?model=second", files={"image": encoded(0)}).json()
    assert found["model"] == "second"
    assert {one["label"] for one in found["predictions"][0]["top"]} == {"a", "b"}


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ev2.InputError, match=mentioning("fastapi", "'serve'")):
        _ = serving.serve


def test_model_names_come_from_runs_files_or_the_user():
    assert name_models(["runs/mine", "runs/next/model.safetensors", "photos.safetensors", "cats=runs/x"]) == {
        "mine": "runs/mine",
        "next": "runs/next/model.safetensors",
        "photos": "photos.safetensors",
        "cats": "runs/x",
    }
    with pytest.raises(ev2.InputError, match=mentioning("a/run", "b/run", "NAME=b/run")):
        name_models(["a/run", "b/run"])
    with pytest.raises(ev2.InputError, match=mentioning("NAME=")):
        name_models({"a/b": "runs/x"})


def test_heat_map_has_the_image_size_of_the_model(client):
    response = client.post("/predict?explain=true", files={"image": encoded(0)})
    kind, _, text = response.json()["predictions"][0]["overlay"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (16, 16)


def test_key_is_required_if_the_server_has_one(model):
    with TestClient(app_of(model, api_keys=("another-key-of-some-length", KEY))) as client:

        def status(**headers):
            return client.post("/predict", files={"image": encoded(0)}, headers=headers).status_code

        refused = client.post("/predict", files={"image": encoded(0)})
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert mentions(refused.json()["error"], "Authorization")
        assert status(Authorization=f"Bearer {KEY}") == status(**{"X-API-Key": KEY}) == 200
        assert {status(), status(Authorization=f"Bearer {KEY}x"), status(**{"X-API-Key": KEY[:-1]})} == {401}
        assert client.get("/metrics").status_code == client.get("/v2/models/tiny").status_code == 401
        assert client.get("/v2/health/ready").status_code == client.get("/").status_code == 200


def test_key_file_has_one_key_per_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the camera\n{KEY}\n\n")
    assert read_api_keys(file) == (KEY,)
    file.write_text("# none\n")
    with pytest.raises(ev2.InputError, match=mentioning(str(file))):
        read_api_keys(file)
    with pytest.raises(ev2.InputError, match=mentioning("api_keys", 16)):
        ServerOptions(api_keys=("short",))


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"timeout": float("inf")}, {"queue": 1.5}, {"max_wait_ms": -1}, {"max_pixels": 4 * 10**8}],
)
def test_invalid_options_are_refused(wrong):
    with pytest.raises(ev2.InputError, match=mentioning(*wrong)):
        ServerOptions(**wrong)


def test_unknown_engine_is_refused(model):
    with pytest.raises(ev2.InputError, match=mentioning("engine", "'onnx'", "onnxruntime", "openvino")):
        app_of(model, engine="onnx")


def test_page_runs_its_own_script_and_loads_nothing_else(client):
    response = client.get("/")
    html, policy = response.text, response.headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert re.findall(r"https?://|//[a-z]+\.", html) == []
    # The policy blocks these anyway.
    assert re.findall(r"\son[a-z]+=|\sstyle=", html) == []


def test_script_of_the_page_finds_its_elements_and_each_field_has_a_label(client):
    html = client.get("/").text
    ids = set(re.findall(r'\sid="(\w+)"', html))
    assert set(re.findall(r'\$\("(\w+)"\)', html)) <= ids
    labeled = set(re.findall(r'\sfor="(\w+)"', html)) | set(re.findall(r'<label[^>]*>[^\n]*?id="(\w+)"', html))
    assert set(re.findall(r'<(?:input|select)[^>]*\sid="(\w+)"', html)) <= labeled


def test_metrics_count_requests_images_and_batches(model):
    with TestClient(app_of(model)) as client:
        client.post("/predict", files=[("image", encoded(seed)) for seed in range(3)])
        client.post("/predict", content=b"", headers={"Content-Type": "image/jpeg"})
        client.get("/no/such/page")
        response = client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    assert values['effnetv2_images_total{model="tiny"}'] == "3"
    assert values['effnetv2_requests_total{route="/predict",status="200"}'] == "1"
    assert values['effnetv2_requests_total{route="/predict",status="422"}'] == "1"
    assert values['effnetv2_requests_total{route="unknown",status="404"}'] == "1"
    assert values['effnetv2_request_seconds_bucket{route="/predict",le="+Inf"}'] == "2"
    assert values['effnetv2_queue_images{model="tiny"}'] == "0"


def test_the_openapi_document_has_the_routes_and_their_bodies(client):
    document = client.get("/openapi.json").json()
    assert {"/predict", "/metrics", "/v2/models/{name}/infer", "/v2/health/ready"} <= set(document["paths"])
    predict = document["paths"]["/predict"]["post"]
    assert {"multipart/form-data", "application/json"} <= set(predict["requestBody"]["content"])
    assert {"200", "413", "429"} <= set(predict["responses"])


def test_references_of_the_openapi_document_exist(client):
    document = client.get("/openapi.json").json()
    references = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))
    assert references
    for reference in references:
        found = document
        for name in reference.split("/"):
            found = found[name]
    body = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]
    assert "datatype" in body["schema"]["properties"]["inputs"]["items"]["properties"]


def test_engine_of_the_server_computes(model):
    for name in ("onnxruntime", "onnx", "onnxscript"):
        pytest.importorskip(name)
    calls = []
    with TestClient(app_of(model, engine="onnxruntime")) as client:
        network = client.app.state.service.models.get("tiny").predictor.network
        network.register_forward_hook(lambda *_: calls.append(1))
        assert client.post("/predict", files={"image": encoded(0)}).status_code == 200
    assert calls == []


def test_command_passes_every_option_on(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text(KEY)
    seen = []
    monkeypatch.setattr(
        serving, "serve", lambda models, given, *, host, port, on_start: seen.append((models, given, host, port))
    )
    words = "--host 0.0.0.0 --port 81 --device cpu --engine torch --batch-size 3 --max-wait-ms 2 --queue 9 --timeout 7"
    words += " --max-bytes 1000 --max-pixels 2000 --max-images 4 --allow-urls --api-key-file"
    done = CliRunner().invoke(app, ["serve", "runs/one", *words.split(), str(tmp_path / "keys")])
    assert done.exit_code == 0, done.output
    options = ServerOptions("cpu", "torch", 3, 2.0, 9, 1000, 2000, 4, 7.0, True, (KEY,))
    assert seen == [(["runs/one"], options, "0.0.0.0", 81)]


@pytest.mark.parametrize(("bias", "labels"), [((1.0, 2.0, -1.0), ["pasture", "forest"]), ((-1.0, -2.0, -3.0), [])])
def test_multi_label_model_returns_all_assigned_labels(bias, labels, model, tmp_path):
    loaded = ev2.load(model)
    loaded.activation = "sigmoid"
    with torch.no_grad():
        loaded.classifier.weight.zero_()
        loaded.classifier.bias.copy_(torch.tensor(bias))
    ev2.save(tmp_path / "m.safetensors", loaded)
    with TestClient(app_of(tmp_path / "m.safetensors")) as client:
        (found,) = client.post("/predict", files={"image": encoded(0)}).json()["predictions"]
    assert found["labels"] == labels
