"""A bundle of a tiny network, and the server as a process of its own."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serve_bundle import make_bundle
from pipeline.bundle import Bundle
from targets.base import Images, Logits
from tests.targets.tiny_onnx import tiny_model

ROOT = Path(__file__).parents[3]
CLASSES = ("cat", "chién", "犬", "a:b", "e")
INFER = "/v2/models/tiny/infer"

Infer = Callable[[Images], Logits]


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of the answer, over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, _, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def infer(self, document: Any) -> Any:
        """The answer to a request all in JSON."""
        status, _, body = self.ask("POST", INFER, json.dumps(document).encode())
        assert status == 200, body
        return json.loads(body)


@contextmanager
def serving(bundle: Path, log: Path, *flags: str) -> Iterator[Served]:
    """The server on a free port; killed at the end if it still runs."""
    command = [sys.executable, "-m", "examples.serve", str(bundle), "--port", "0", *flags]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "/v2/models/" in line, log.read_text()
            yield Served(process, int(line.split("127.0.0.1:")[1].split("/")[0]))
        finally:
            process.kill()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On disk, of batch 2, for ort-cpu."""
    folder = tmp_path_factory.mktemp("serve") / "tiny"
    make_bundle(folder, tiny_model(batch=2), target="ort-cpu", classes=CLASSES)
    return folder


@pytest.fixture(scope="session")
def infer(bundle: Path) -> Iterator[Infer]:
    """The engine itself."""
    with Bundle.open(bundle).load() as engine:
        yield engine.infer


@pytest.fixture(scope="session")
def served(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that all tests ask; whatever they send, it logs no traceback."""
    log = tmp_path_factory.mktemp("log") / "stderr"
    with serving(bundle, log, "--instances", "2", "--max-request-mb", "1") as server:
        yield server
    assert log.read_text() == ""


def tensor(images: Images, **changes: Any) -> dict[str, Any]:
    """A request of FP32 images in JSON."""
    given = {
        "name": "input",
        "shape": list(images.shape),
        "datatype": "FP32",
        "data": images.ravel().tolist(),
    }
    return {"inputs": [given | changes]}


def logits_of(answer: Any) -> Logits:
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"]) == ("output", "FP32")
    return np.array(output["data"], np.float32).reshape(output["shape"])
