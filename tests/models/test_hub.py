"""Pretrained weights by name, from a local server with the protocol and the failures of the hub."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from tests.command_line import effnetv2_fresh
from tests.hub_server import COMMIT, serving
from tests.messages import mentioning, mentions

import efficientnetv2
from efficientnetv2.models import hub as hub_module
from efficientnetv2.models import pretrained
from efficientnetv2.models.conversion.convert import read_pretrained
from efficientnetv2.models.hub import DownloadError, Hub, cached, fetch, url
from efficientnetv2.training.initial_weights import load_weights
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.processes import call_with_timeout

NAME = "efficientnetv2_b0.in1k"
FILE = "timm/tf_efficientnetv2_b0.in1k/model.safetensors"
CONTENT = np.random.default_rng(0).bytes(5 * 2**20 + 12345)
TORCHVISION = "efficientnet_b0.tv_in1k"


@pytest.fixture
def server():
    with serving() as server:
        server.files[FILE] = CONTENT
        yield server


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """Separate caches for each test, filled from the server."""
    monkeypatch.setattr(hub_module, "PAUSE_S", 0.0)
    return Hub(
        endpoint=server.url, folder=tmp_path / "hub", pytorch=server.url, torch_folder=tmp_path / "torch", patience_s=5
    )


def kept(folder: Path) -> list[str]:
    """All files of a cache except locks and its tag."""
    return [p.name for p in folder.rglob("*") if p.is_file() and p.suffix not in (".lock", ".TAG")]


def test_test_suite_does_not_use_the_internet():
    assert huggingface_hub.constants.ENDPOINT == "http://127.0.0.1:9"
    assert Hub().endpoint == "http://127.0.0.1:9"
    assert "effnetv2-caches-" in str(Hub().folder)
    assert "effnetv2-caches-" in str(Hub().torch_folder)


def test_file_is_downloaded_once_into_the_cache_of_huggingface_hub(server, hub):
    assert cached(NAME, hub) is None
    path = fetch(NAME, hub)
    assert path.read_bytes() == CONTENT
    theirs = huggingface_hub.hf_hub_download(
        "timm/tf_efficientnetv2_b0.in1k", "model.safetensors", cache_dir=hub.folder, local_files_only=True
    )
    assert Path(theirs) == path == cached(NAME, hub)
    assert path.parent.name == COMMIT

    server.asked.clear()
    assert fetch(NAME, hub) == fetch(NAME, replace(hub, offline=True)) == path
    assert server.asked == []


def test_interrupted_download_resumes(server, hub):
    server.breaks = [3 * 2**20, 2**20]
    assert fetch(NAME, hub).read_bytes() == CONTENT
    first, second, third = server.transfers()
    assert first is None
    assert second == f"bytes={3 * 2**20}-"
    assert third == f"bytes={4 * 2**20}-"


def test_download_from_a_server_without_ranges_starts_again(server, hub):
    server.no_ranges, server.breaks = True, [2**21]
    assert fetch(NAME, hub).read_bytes() == CONTENT
    assert len(server.transfers()) == 2


def test_part_of_a_failed_download_is_used_later(server, hub):
    server.breaks = [3 * 2**20, 0, 0, 0]
    with pytest.raises(InputError, match="the download resumes"):
        fetch(NAME, hub)
    assert cached(NAME, hub) is None
    server.asked.clear()
    assert fetch(NAME, hub).read_bytes() == CONTENT
    assert server.transfers() == [f"bytes={3 * 2**20}-"]


def test_partial_file_of_other_content_is_discarded(server, hub):
    blobs = hub.folder / "models--timm--tf_efficientnetv2_b0.in1k" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(CONTENT).hexdigest()}.incomplete").write_bytes(b"x" * 2**20)
    assert fetch(NAME, hub).read_bytes() == CONTENT
    assert server.transfers() == [f"bytes={2**20}-", None]


@pytest.mark.parametrize("name", [NAME, TORCHVISION])
def test_content_with_a_wrong_hash_is_rejected_and_not_saved(server, hub, name):
    server.files[f"models/{pretrained.get_weights(TORCHVISION).file}"] = CONTENT
    server.other_content = True
    with pytest.raises(InputError, match=mentioning("SHA-256")):
        fetch(name, hub)
    assert cached(name, hub) is None
    assert not kept(hub.folder)
    assert not hub.torch_folder.exists() or not kept(hub.torch_folder)


def test_file_without_a_hash_is_rejected(server, hub):
    server.no_hash = True
    with pytest.raises(InputError, match=mentioning("SHA-256")):
        fetch(NAME, hub)
    assert not kept(hub.folder)


def test_slow_server_does_not_time_out(server, hub):
    server.pause_s = 0.03  # 64 KiB each, 2.4 s in total
    assert fetch(NAME, replace(hub, patience_s=2)).read_bytes() == CONTENT


def test_silent_server_times_out(server, hub):
    server.stalls = True
    started = time.perf_counter()
    with pytest.raises(InputError, match="breaks the connection"):
        fetch(NAME, replace(hub, patience_s=0.3))
    assert time.perf_counter() - started < 20


def test_server_that_sends_single_bytes_times_out(server, hub, monkeypatch):
    """No single byte is late, but the file would take days."""
    monkeypatch.setattr(hub_module, "STALL_S", 1.0)
    server.drips = True
    started = time.perf_counter()
    with pytest.raises(InputError, match=mentioning("30,000", "1")):
        fetch(NAME, replace(hub, patience_s=5))
    assert time.perf_counter() - started < 20
    assert len(server.transfers()) == 1


def test_excess_data_of_a_server_is_not_read(server, hub):
    server.endless = True
    assert fetch(NAME, hub).read_bytes() == CONTENT


def test_many_short_transfers_complete_the_file(server, hub):
    """Each has less than 1 MiB."""
    server.breaks = [300_000] * (len(CONTENT) // 300_000)
    assert fetch(NAME, hub).read_bytes() == CONTENT
    assert server.transfers()[:3] == [None, "bytes=300000-", "bytes=600000-"]


def test_download_timeout_is_logged_before_the_download(server, hub, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("efficientnetv2.models.hub"), "warning", said.append)
    fetch(NAME, hub)
    assert mentions(said[0], "30 s", "without progress", "HF_HUB_OFFLINE")


@pytest.mark.parametrize("name", [NAME, TORCHVISION])
def test_server_without_a_response_times_out(hub, name):
    """As with a firewall that drops packets. The name lookup counts too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nowhere = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.perf_counter()
        with pytest.raises(InputError, match="cannot be reached, or breaks the connection"):
            fetch(name, replace(hub, endpoint=nowhere, pytorch=nowhere, patience_s=0.3))
    assert time.perf_counter() - started < 8  # the libraries themselves wait for 10 s
    with pytest.raises(TimeoutError, match=mentioning("0.1")):
        call_with_timeout(0.1, lambda: time.sleep(5))


@pytest.mark.parametrize("name", [NAME, TORCHVISION])
@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_http_error_is_reported_with_status_and_fix(server, hub, status, name):
    server.status = status
    with pytest.raises(InputError) as told:
        fetch(name, hub)
    folder = hub.folder if name == NAME else hub.torch_folder
    for part in (f"responds with {status}", url(name, hub), f"the cache folder is {folder};"):
        assert part in str(told.value)
    assert ("hf auth login" in str(told.value)) == (status == 401 and name == NAME)
    assert len(server.asked) <= 3


@pytest.mark.parametrize("name", [NAME, TORCHVISION])
def test_connection_error_is_immediate_and_its_advice_works(hub, name):
    nowhere = replace(hub, endpoint="http://127.0.0.1:9", pytorch="http://127.0.0.1:9")
    started = time.perf_counter()
    with pytest.raises(InputError, match=mentioning("127.0.0.1:9")) as told:
        fetch(name, nowhere)
    assert time.perf_counter() - started < 8
    place = re.search(r"put the file at (\S+) \(the cache folder", str(told.value))
    assert place is not None
    assert mentions(str(told.value), name, "effnetv2 models --fetch")
    Path(place[1]).parent.mkdir(parents=True)
    Path(place[1]).write_bytes(CONTENT)
    if name == NAME:
        assert fetch(name, nowhere).read_bytes() == CONTENT
    else:  # the file name has a hash, and this content has another
        with pytest.raises(InputError, match="is damaged"):
            fetch(name, nowhere)


def test_offline_mode_makes_no_request(server, hub):
    with pytest.raises(InputError, match=mentioning("HF_HUB_OFFLINE", "cache")):
        fetch(NAME, replace(hub, offline=True))
    assert server.asked == []


def test_changed_file_in_the_cache_is_downloaded_again(server, hub):
    path = fetch(NAME, hub)
    path.resolve().write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(InputError, match="is damaged"):
        fetch(NAME, replace(hub, offline=True))
    assert fetch(NAME, hub).read_bytes() == CONTENT


def test_unwritable_cache_is_reported(hub, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=mentioning("HF_HUB_CACHE", "cache")):
        fetch(NAME, replace(hub, folder=tmp_path / "file"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks5://127.0.0.1:9"), ("ALL_PROXY", "socks://127.0.0.1:9"), ("SSL_CERT_FILE", "/no/such.pem")],
)
def test_wrong_network_settings_are_named_and_other_weights_are_taken(name, value, hub, monkeypatch):
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(proxy)
        monkeypatch.delenv(proxy.lower())
    monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "socksio", None)  # an extra of httpx2
    huggingface_hub.utils.close_session()
    try:
        with pytest.raises(DownloadError, match=mentioning(name)):
            fetch(NAME, hub)
    finally:
        huggingface_hub.utils.close_session()


def test_file_of_another_user_in_a_shared_cache_is_not_cached(hub, monkeypatch):
    fetch(NAME, hub)
    assert cached(NAME, hub) is not None
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert cached(NAME, hub) is None

    def refused(*_arguments, **_more):
        raise PermissionError

    monkeypatch.setattr(hub_module, "try_to_load_from_cache", refused)
    assert cached(NAME, hub) is None


def test_concurrent_downloads_transfer_the_file_once(server, hub):
    server.pause_s = 0.005
    with ThreadPoolExecutor(2) as both:
        paths = list(both.map(lambda _: fetch(NAME, hub), range(2)))
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == CONTENT
    assert len(server.transfers()) == 1


def test_mirror_is_set_by_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    script = "import logging; from efficientnetv2.models.hub import fetch; logging.basicConfig(); "
    script += f"print(fetch('{NAME}'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).read_bytes() == CONTENT
    assert tmp_path in Path(done.stdout.strip()).parents
    (said,) = done.stderr.splitlines()  # no progress bar without a terminal
    assert server.url in said


def test_torchvision_files_are_checked_by_the_hash_in_their_names(server, hub, monkeypatch):
    file = f"efficientnet_b0-{sha256(CONTENT).hexdigest()[:8]}.pth"
    monkeypatch.setitem(pretrained._TABLE, TORCHVISION, replace(pretrained.get_weights(TORCHVISION), file=file))
    server.files[f"models/{file}"] = CONTENT
    server.breaks = [2**21]
    assert fetch(TORCHVISION, hub) == hub.torch_folder / file
    assert (hub.torch_folder / file).read_bytes() == CONTENT
    assert not hub.folder.exists(), "the cache of others, which may not be ours to write in"
    assert server.transfers() == [None, f"bytes={2**21}-"]
    server.asked.clear()
    assert fetch(TORCHVISION, hub) == cached(TORCHVISION, hub)
    assert server.asked == []


def test_weights_by_name_give_the_logits_of_timm(server, hub):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("tf_efficientnetv2_b0").eval()
    server.files[FILE] = safetensors.torch.save(theirs.state_dict(), {"format": "pt"})
    network = read_pretrained(fetch(NAME, hub), NAME)
    pictures = torch.randn(2, 3, 65, 65)
    with torch.inference_mode():
        ours, wanted = network(pictures), theirs(pictures)
    assert (ours - wanted).abs().max() <= 1e-4 * wanted.std()
    assert not network.training
    assert network.class_names[:2] == ("tench", "goldfish")
    assert network.preprocessing.image_size == 224
    assert network.preprocessing.crop_pct == 0.875


def test_create_accepts_a_weights_name_and_adapts_the_model(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    weights = timm.create_model("tf_efficientnetv2_b0").state_dict()
    place = tmp_path / "models--timm--tf_efficientnetv2_b0.in1k/snapshots/main"
    place.mkdir(parents=True)
    safetensors.torch.save_file(weights, place / "model.safetensors", {"format": "pt"})
    network = efficientnetv2.create(NAME, num_classes=3, in_channels=1)
    assert torch.equal(network.stem.conv.weight, weights["conv_stem.weight"].sum(1, keepdim=True))
    assert network.classifier.weight.shape == (3, 1280)


def test_each_tag_has_its_own_preprocessing(server, hub):
    """AdvProp models need [-1, 1], the others of this architecture ImageNet's mean and std."""
    timm = pytest.importorskip("timm")
    weights = safetensors.torch.save(timm.create_model("tf_efficientnet_b0").state_dict(), {"format": "pt"})
    for tag, mean in (("ap_in1k", (0.5, 0.5, 0.5)), ("in1k", (0.485, 0.456, 0.406))):
        server.files[f"timm/tf_efficientnet_b0.{tag}/model.safetensors"] = weights
        assert (
            read_pretrained(fetch(f"efficientnet_b0.{tag}", hub), f"efficientnet_b0.{tag}").preprocessing.mean == mean
        )


def test_torchvision_weights_by_name_give_its_logits(server, hub, monkeypatch, tmp_path):
    from torchvision.models import efficientnet_b0

    torch.manual_seed(0)
    theirs = efficientnet_b0().eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    file = f"efficientnet_b0-{sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(pretrained._TABLE, TORCHVISION, replace(pretrained.get_weights(TORCHVISION), file=file))
    server.files[f"models/{file}"] = content
    network = read_pretrained(fetch(TORCHVISION, hub), TORCHVISION)
    pictures = torch.randn(2, 3, 65, 65)
    with torch.inference_mode():
        ours, wanted = network(pictures), theirs(pictures)
    assert (ours - wanted).abs().max() <= 1e-4 * wanted.std()
    assert network.preprocessing.crop_pct == 224 / 256


def test_file_with_another_number_of_classes_is_rejected(server, hub):
    timm = pytest.importorskip("timm")
    weights = timm.create_model("tf_efficientnetv2_b0", num_classes=7).state_dict()
    server.files[FILE] = safetensors.torch.save(weights, {"format": "pt"})
    with pytest.raises(InputError, match=mentioning("7", "efficientnetv2_b0.in1k", "1000")):
        read_pretrained(fetch(NAME, hub), NAME)


# Lists of available weights


def test_timm_rows_equal_the_configurations_of_timm():
    """Every tf_ model except lite, with size, crop mode, mean and std, classes and license."""
    pytest.importorskip("timm")
    from timm.models.efficientnet import default_cfgs

    theirs = {
        f"{model.removeprefix('tf_')}.{tag}": cfg
        for model, row in default_cfgs.items()
        for tag, cfg in row.cfgs.items()
        if re.match(r"tf_efficientnet(v2)?_(b\d|l2|s|m|l|xl)$", model) and tag
    }
    ours = {name: row for name in pretrained.weight_names() if (row := pretrained.get_weights(name)).source == "timm"}
    assert set(ours) == set(theirs)
    for name, cfg in theirs.items():
        row, preprocessing = ours[name], ours[name].preprocessing
        px = (cfg.test_input_size or cfg.input_size)[1]
        assert row.repository == f"{cfg.hf_hub_id}tf_{name}"
        assert preprocessing.image_size == px
        assert preprocessing.crop_mode == {"squash": "squash", "center": "center"}[cfg.crop_mode]
        resized_px = px / preprocessing.crop_pct
        assert round(resized_px, 9) == int(px / cfg.crop_pct)
        assert (preprocessing.mean, preprocessing.std) == (cfg.mean, cfg.std)
        assert (preprocessing.interpolation, row.num_classes) == (cfg.interpolation, cfg.num_classes)
        assert row.license.lower() == cfg.license


def test_torchvision_rows_equal_the_metadata_of_torchvision():
    from torchvision.models import get_model_weights

    ours = [row for name in pretrained.weight_names() if (row := pretrained.get_weights(name)).source == "torchvision"]
    theirs = {weights.url: weights for row in ours for weights in get_model_weights(row.their_model)}
    assert {url(row.name, Hub(pytorch="https://download.pytorch.org")) for row in ours} == set(theirs)
    for row in ours:
        weights = theirs[f"https://download.pytorch.org/{row.repository}/{row.file}"]
        transform, preprocessing = weights.transforms(), row.preprocessing
        assert row.top1_percent == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert preprocessing.image_size == transform.crop_size[0]
        assert round(preprocessing.image_size / preprocessing.crop_pct, 9) == transform.resize_size[0]
        assert preprocessing.interpolation == transform.interpolation.value
        assert (preprocessing.mean, preprocessing.std) == (tuple(transform.mean), tuple(transform.std))


def test_top1_equals_the_results_table_of_timm():
    """huggingface/pytorch-image-models, results/results-imagenet.csv, at the evaluation size."""
    figures = {
        "efficientnetv2_b0.in1k": 78.386,
        "efficientnetv2_b3.in21k_ft_in1k": 82.634,
        "efficientnetv2_s.in1k": 83.900,
        "efficientnetv2_s.in21k_ft_in1k": 84.332,
        "efficientnetv2_m.in1k": 85.208,
        "efficientnetv2_l.in21k_ft_in1k": 86.802,
        "efficientnetv2_xl.in21k_ft_in1k": 86.754,
        "efficientnet_b7.ns_jft_in1k": 86.850,
        "efficientnet_l2.ns_jft_in1k_475": 88.246,
        "efficientnetv2_s.in21k": None,
    }
    assert {name: pretrained.get_weights(name).top1_percent for name in figures} == figures


def test_weights_are_ranked_from_the_best():
    assert pretrained.ranked_weights("efficientnetv2_s") == (
        "efficientnetv2_s.in21k_ft_in1k",
        "efficientnetv2_s.in1k",
        "efficientnetv2_s.tv_in1k",
        "efficientnetv2_s.in21k",
    )
    assert {name for model in efficientnetv2.list_models() for name in pretrained.ranked_weights(model)} == set(
        efficientnetv2.list_models(pretrained=True)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnetv2_s.in22k", ("did you mean", "efficientnetv2_s.in21k_ft")),
        ("efficientnetv2_s", ("efficientnetv2_s", "weight")),
        ("efficientnetv3_s.in1k", ("efficientnetv3_s", "did you mean", "efficientnetv2_s")),
    ],
)
def test_unknown_weights_name_suggests_the_nearest(name, message):
    for ask in (pretrained.get_weights, fetch, cached):
        with pytest.raises(InputError, match=mentioning(*message)):
            ask(name)


def test_models_command_lists_weights_and_cached_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--timm--tf_efficientnetv2_b0.in1k/snapshots/main/model.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    rows = json.loads(effnetv2_fresh("models", "--pretrained", "--json", cwd=tmp_path).stdout)
    assert [row["name"] for row in rows] == list(pretrained.weight_names())
    assert [row["name"] for row in rows if row["cached"]] == [NAME]
    assert rows[0] == {
        "name": NAME,
        "model": "efficientnetv2_b0",
        "image_size": 224,
        "num_classes": 1000,
        "megabytes_about": 28.6,  # 7.1 M parameters of 4 bytes each
        "top1_percent": 78.386,
        "license": "Apache-2.0",
        "source": "timm",
        "url": "http://127.0.0.1:9/timm/tf_efficientnetv2_b0.in1k/resolve/main/model.safetensors",
        "cached": str(place),
    }
    shown = effnetv2_fresh("models", "--pretrained", cwd=tmp_path).stdout
    assert re.search(r"efficientnetv2_b0\.in1k\W+224\W+78\.4\W+29\W+Apache-2\.0\W+timm\W+yes", shown)


def test_models_command_downloads_weights_and_prints_the_path(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    done = effnetv2_fresh("models", "--fetch", NAME, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert Path(told["path"]).read_bytes() == CONTENT
    assert (told["name"], told["megabytes"]) == (NAME, round(len(CONTENT) / 1e6, 1))
    shown = effnetv2_fresh("models", "--fetch", NAME, cwd=tmp_path).stdout
    assert told["path"] in shown.replace("\n", "")
    assert f"--weights {NAME}.safetensors" in " ".join(shown.split())
    assert [path for _, path, _ in server.asked if path.startswith("/cdn/")] == [f"/cdn/{FILE}"], "once"


def test_file_with_the_name_of_weights_has_their_preprocessing(server, hub, tmp_path):
    """AdvProp models need [-1, 1], which is not stored in the file."""
    timm = pytest.importorskip("timm")
    name = "efficientnet_b0.ap_in1k"
    weights = safetensors.torch.save(timm.create_model("tf_efficientnet_b0").state_dict(), {"format": "pt"})
    server.files[f"timm/tf_{name}/model.safetensors"] = weights
    carried = tmp_path / f"{name}.safetensors"
    shutil.copy(fetch(name, hub), carried)
    network, _ = load_weights(str(carried))
    assert network.preprocessing == pretrained.get_weights(name).preprocessing
    assert torch.equal(network.stem.conv.weight, read_pretrained(fetch(name, hub), name).stem.conv.weight)
