"""compose.yaml and README.md name only what is there."""

from __future__ import annotations

import re
import tomllib

import click
import pytest
import yaml

from examples.serve.__main__ import main

from .conftest import ROOT

FOLDER = ROOT / "examples" / "serve"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
OPTIONS = {name: one for one in main.params for name in one.opts if isinstance(one, click.Option)}


@pytest.fixture
def readme() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_servers_command_is_one_that_it_takes() -> None:
    server = COMPOSE["services"]["server"]
    assert server["entrypoint"] == ["python", "-m", "examples.serve"]
    context = main.make_context("serve", [str(ROOT), *server["command"][1:]])
    assert server["command"][0] == server["volumes"][0].split(":")[-2]  # where BUNDLE is mounted
    assert context.params["host"] == "0.0.0.0"
    assert context.params["any_fingerprint"]


def test_the_servers_image_has_what_it_needs() -> None:
    server = COMPOSE["services"]["server"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert {"serve", "ort-cpu"} <= set(server["build"]["args"]["EXTRAS"].split(",")) <= set(extras)
    assert (FOLDER / server["build"]["context"] / "Dockerfile").exists()
    source, place = server["volumes"][1].split(":")[:2]
    assert (FOLDER / source / "serve" / "__main__.py").exists()
    assert place == "/workspace/examples"  # below the image's working folder
    compile(server["healthcheck"]["test"][-1], "healthcheck", "exec")


def test_triton_gets_the_repository_of_the_bundle() -> None:
    triton = COMPOSE["services"]["triton"]
    assert "--model-repository=/models" in triton["command"]
    (volume,) = triton["volumes"]
    assert volume.endswith("}/triton:/models:ro")


def test_nothing_is_exposed_but_to_this_machine() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_readme_knows_the_flags_and_their_defaults(readme: str) -> None:
    assert set(re.findall(r"`(--[a-z-]+)", readme)) <= set(OPTIONS)
    for flag, value in re.findall(r"`(--[a-z-]+)` \((\d+)\)", readme):
        assert OPTIONS[flag].default == int(value), flag


def test_the_readmes_python_is_python(readme: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    compile(code, "README.md", "exec")
