"""What is installed from a wheel and in the Docker image, not from a clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BUNDLED_FILES = """
import json
from efficientnetv2.cli.demo import bundled_images
from efficientnetv2.training.initial_weights import weights_candidates
print(json.dumps([str(bundled_images()), [found.word for found in weights_candidates("efficientnetv2_b0")]]))
"""


@pytest.mark.slow
def test_the_wheel_has_the_images_and_weights_of_the_demo(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
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
    """Of the Dockerfile: each keyword and its text on one line."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in whole.splitlines() if line]


def test_the_image_runs_without_root_and_shows_its_health():
    last = max(number for number, (word, _) in enumerate(instructions()) if word == "FROM")
    final = instructions()[last:]
    assert dict(final)["USER"] not in ("root", "0")
    health = json.loads(dict(final)["HEALTHCHECK"].partition("CMD ")[2])
    compile(health[-1], "HEALTHCHECK", "exec")
    assert [word for word, _ in final].index("USER") > max(n for n, (word, _) in enumerate(final) if word == "RUN")


def test_the_image_sees_what_the_wheel_is_built_from():
    kept = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert kept == {"LICENSE", "README.md", "pyproject.toml", "examples", "src"}
    assert all((ROOT / name).exists() for name in kept)


@pytest.mark.slow
def test_the_image_is_built_where_docker_runs():
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("docker does not run here: the image is not built")
    built = ["docker", "build", "--quiet", "."]
    image = subprocess.run(built, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    said = subprocess.run(["docker", "run", "--rm", image, "--version"], check=True, capture_output=True, text=True)
    assert said.stdout.startswith("effnetv2 ")
