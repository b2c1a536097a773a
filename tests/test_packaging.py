"""The content of the wheel and of the Docker image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).parents[1]

BUNDLED_FILES = """
import json
from efficientnetv2.cli.demo import bundled_images
from efficientnetv2.training.initial_weights import weights_candidates
print(json.dumps([str(bundled_images()), [found.word for found in weights_candidates("efficientnetv2_b0")]]))
"""


@pytest.mark.slow
def test_wheel_has_the_images_and_weights_of_the_demo(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    licenses = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/licenses/" in name]
    assert {name.partition("licenses/")[2] for name in licenses} == {"LICENSE", "examples/satellite/LICENSE.txt"}
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BUNDLED_FILES],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    examples = tmp_path / "installed/efficientnetv2/examples"
    images, weights = json.loads(done.stdout)
    assert Path(images) == Path("installed/efficientnetv2/examples/satellite")
    assert str(examples / "weights/efficientnetv2_b0.safetensors") in weights


def instructions() -> list[tuple[str, str]]:
    """Return the keyword and the joined lines of each instruction in the Dockerfile."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line]


def test_docker_image_runs_without_root_and_has_a_health_check():
    last = max(number for number, (name, _) in enumerate(instructions()) if name == "FROM")
    final = instructions()[last:]
    assert dict(final)["USER"] not in ("root", "0")
    health = json.loads(dict(final)["HEALTHCHECK"].partition("CMD ")[2])
    compile(health[-1], "HEALTHCHECK", "exec")
    assert [name for name, _ in final].index("USER") > max(n for n, (name, _) in enumerate(final) if name == "RUN")


@pytest.mark.parametrize("status", [200, 503])
def test_health_check_of_the_image_asks_no_proxy(status):
    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/v2/health/live" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    check = json.loads(dict(instructions())["HEALTHCHECK"].partition("CMD ")[2])[-1]
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    environment |= dict.fromkeys(("HTTP_PROXY", "http_proxy"), "http://127.0.0.1:9")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever).start()
        try:
            code = check.replace("8000", str(server.server_port))
            found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
        finally:
            server.shutdown()
    assert (found.returncode == 0) == (status == 200)


def test_docker_build_context_has_the_files_of_the_wheel():
    included = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert included == {"LICENSE", "README.md", "pyproject.toml", "examples", "src"}
    assert all((ROOT / name).exists() for name in included)


@pytest.mark.slow
def test_docker_image_is_built_and_runs():
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("docker does not run here: the image is not built")
    built = ["docker", "build", "--quiet", "."]
    image = subprocess.run(built, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    output = subprocess.run(["docker", "run", "--rm", image, "--version"], check=True, capture_output=True, text=True)
    assert output.stdout.startswith("effnetv2 ")
