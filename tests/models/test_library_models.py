"""Weights of timm and torchvision by tag, from a local server: checks, cache and timeouts."""

from __future__ import annotations

import io
import os
import time
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from tests.command_line import TINY, effnetv2
from tests.hub_server import serving
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides

from efficientnetv2.models import hub
from efficientnetv2.models.factory import create
from efficientnetv2.models.hub import Hub, timm_file, torchvision_file
from efficientnetv2.training.initial_weights import build_initial_model, load_weights
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.errors import InputError

timm = pytest.importorskip("timm")

WORD = "timm:resnet10t.c3_in1k"
REPOSITORY = "timm/resnet10t.c3_in1k"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The hub of the environment, with separate caches for each test."""
    monkeypatch.setattr(hub, "PAUSE_S", 0.0)
    with serving() as server:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setattr(hub, "Hub", partial(hub.Hub, endpoint=server.url, folder=tmp_path / "hub"))
        yield server


def same_answers(ours, theirs):
    pictures = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        return torch.equal(ours.eval()(pictures), theirs.eval()(pictures))


def test_weights_of_a_tag_are_downloaded_once(server):
    theirs = timm.create_model("resnet10t")
    server.files[f"{REPOSITORY}/model.safetensors"] = safetensors.torch.save(theirs.state_dict())
    server.breaks = [2**20]  # the download resumes there
    network, _ = load_weights(WORD)
    assert same_answers(network, theirs)
    assert len(server.transfers()) == 2
    server.asked.clear()
    assert same_answers(create(WORD), theirs)
    assert server.asked == []


def test_cached_weights_need_no_network(server, monkeypatch):
    theirs = timm.create_model("resnet10t")
    server.files[f"{REPOSITORY}/model.safetensors"] = safetensors.torch.save(theirs.state_dict())
    create(WORD)
    monkeypatch.setattr(hub, "Hub", partial(hub.Hub, endpoint="http://127.0.0.1:9"))
    started = time.perf_counter()
    assert same_answers(create(WORD), theirs)
    assert time.perf_counter() - started < 20


def test_repository_with_only_a_pickle_is_read(server):
    theirs = timm.create_model("resnet10t")
    content = io.BytesIO()
    torch.save(theirs.state_dict(), content)
    server.files[f"{REPOSITORY}/pytorch_model.bin"] = content.getvalue()
    assert same_answers(create(WORD), theirs)
    server.asked.clear()
    assert same_answers(create(WORD), theirs)
    assert server.asked == []


def test_weights_first_published_in_another_format_are_read(server):
    """timm's list has custom_load for Google's .npz, but its repositories have tensors by timm's names."""
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert timm.get_pretrained_cfg(name).custom_load
    theirs = timm.create_model("vit_tiny_patch16_224")
    server.files[f"timm/{name}/model.safetensors"] = safetensors.torch.save(theirs.state_dict())
    assert same_answers(create(f"timm:{name}"), theirs)


def test_weights_are_adapted_to_other_classes_and_channels(server):
    theirs = timm.create_model("resnet10t")
    server.files[f"{REPOSITORY}/model.safetensors"] = safetensors.torch.save(theirs.state_dict())
    network = create(WORD, num_classes=3, in_channels=1)
    assert network(torch.randn(1, 1, 64, 64)).shape == (1, 3)
    assert torch.equal(network.module.layer1[0].conv1.weight, theirs.layer1[0].conv1.weight)


def test_weights_without_a_classifier_or_with_several_get_new_classifiers(server):
    """One model was published as an embedding, one was distilled with two heads."""
    embedding = timm.create_model("convnextv2_atto", num_classes=0)
    distilled = timm.create_model("pit_ti_distilled_224")
    for word, theirs, px in (("convnextv2_atto.fcmae", embedding, 64), ("pit_ti_distilled_224.in1k", distilled, 224)):
        server.files[f"timm/{word}/model.safetensors"] = safetensors.torch.save(theirs.state_dict())
        recipe = with_overrides(get_recipe("quick"), [f"weights=timm:{word}"])
        begun = [
            build_initial_model(recipe, class_names=("a", "b", "c"), device=torch.device("cpu")).network
            for _ in range(2)
        ]
        pictures = torch.randn(2, 3, px, px)
        with torch.inference_mode():
            assert begun[0].eval()(pictures).shape == (2, 3)
        state, again = (network.module.state_dict() for network in begun)
        assert all(torch.equal(state[name], again[name]) for name in state), "the same recipe, the same weights"
        kept = [name for name in theirs.state_dict() if "head" not in name]
        assert all(torch.equal(state[name], theirs.state_dict()[name]) for name in kept)
    network, _ = load_weights("timm:convnextv2_atto.fcmae")
    with torch.inference_mode():
        torch.testing.assert_close(network.eval().embed(pictures), embedding.eval()(pictures))
    with pytest.raises(InputError, match=mentioning("num_classes=N")):
        create("timm:convnextv2_atto.fcmae")


def test_repository_without_weights_is_reported_with_fixes(server):
    with pytest.raises(InputError, match=r"responds with 404") as told:
        create(WORD)
    assert f"{hub.Hub().folder}" in str(told.value)
    asked = [path.rpartition("/")[2] for _, path, _ in server.asked]
    assert asked == ["model.safetensors", "pytorch_model.bin"]


def test_file_with_other_tensors_is_rejected_by_name(server):
    server.files[f"{REPOSITORY}/model.safetensors"] = safetensors.torch.save({"fc.weight": torch.zeros(2, 2)})
    with pytest.raises(InputError, match=mentioning("model.safetensors", "timm:resnet10t")):
        create(WORD)


def test_torchvision_weights_use_the_cache_of_torchvision(server, monkeypatch):
    theirs = torchvision.models.resnet18()
    content = io.BytesIO()
    torch.save(theirs.state_dict(), content)
    digest = sha256(content.getvalue()).hexdigest()[:8]
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", f"{hub.PYTORCH}/models/resnet18-{digest}.pth")
    server.files[f"models/resnet18-{digest}.pth"] = content.getvalue()
    user = hub.Hub(pytorch=server.url)
    path = torchvision_file(weights.url, "resnet18.IMAGENET1K_V1", user)
    assert path == Path(os.environ["TORCH_HOME"]) / "hub/checkpoints" / f"resnet18-{digest}.pth"
    assert same_answers(create("torchvision:resnet18.IMAGENET1K_V1"), theirs)  # from the cache, without a request


def test_files_outside_the_hub_are_left_to_timm(tmp_path):
    name, online = "gcvit_tiny.in1k", Hub(torch_folder=tmp_path, offline=False)
    config = timm.get_pretrained_cfg(name).to_dict()
    assert timm_file(config, name, online) is None
    offline = replace(online, offline=True)
    with pytest.raises(InputError, match=mentioning(name, "HF_HUB_OFFLINE", config["url"])):
        timm_file(config, name, offline)
    (tmp_path / config["url"].rpartition("/")[2]).touch()
    assert timm_file(config, name, offline) is None


@pytest.mark.parametrize("word", [WORD, "torchvision:resnet18.IMAGENET1K_V1"])
def test_training_from_uncached_weights_fails_quickly_without_a_network(word, class_folders, tmp_path):
    started, environment = time.perf_counter(), {"TORCH_HOME": str(tmp_path / "torch")}
    args = ("train", class_folders, "--weights", word, "--output", tmp_path / "run")
    done = effnetv2(*args, cwd=tmp_path, environment=environment)
    assert time.perf_counter() - started < 60
    assert done.returncode == 2
    is_torchvision = word.startswith("torchvision")
    folder = tmp_path / "torch/hub/checkpoints" if is_torchvision else os.environ["HF_HUB_CACHE"]
    limit, *_ = done.stderr.splitlines()  # the timeout is stated before the download
    assert "30 s" in limit
    assert mentions(done.stderr, folder, "cache")
    assert "Downloading" not in done.stdout
    assert not (tmp_path / "run").exists()


def test_auto_weights_train_from_scratch_quickly_without_a_network(class_folders, tmp_path):
    started = time.perf_counter()
    words = (*TINY, "--model", "efficientnetv2_b1", "--weights", "auto")  # the repository has no weights for it
    done = effnetv2("train", class_folders, *words, "--output", tmp_path / "run", cwd=tmp_path)
    assert time.perf_counter() - started < 90  # including the training
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "efficientnetv2_b1.in1k", "cache")
    assert "Retry" not in done.stdout + done.stderr
