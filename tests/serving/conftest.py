"""A server of a tiny model, shared by the tests of a module."""

import pytest
from starlette.testclient import TestClient
from tests.serving.model_files import app_of, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("served") / "tiny" / "model.safetensors")


@pytest.fixture(scope="module")
def client(model):
    with TestClient(app_of(model)) as client:
        yield client
