"""How the server starts, refuses to start, and stops."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serve_bundle import make_bundle
from pipeline.bundle import Bundle, sign_bundle
from pipeline.signing import make_keys
from tests.targets.tiny_onnx import images, tiny_model

from .conftest import CLASSES, INFER, ROOT, Infer, Served, logits_of, serving, tensor


def refused(*arguments: str) -> str:
    """What the command says on stderr, when it does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.serve", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "fix:" in done.stderr
    return done.stderr


def half_sent(served: Served, body: bytes) -> socket.socket:
    """A connection on which the server waits for the second half of a request."""
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=30)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")  # it reads the body
    connection.sendall(body[: len(body) // 2])
    return connection


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_what_came_before_the_signal_is_answered(
    bundle: Path, infer: Infer, tmp_path: Path, stop: signal.Signals
) -> None:
    body = json.dumps(tensor(images(1))).encode()
    with serving(bundle, tmp_path / "log") as served:
        served.get("/v2/health/ready")
        with half_sent(served, body) as connection:
            served.process.send_signal(stop)
            time.sleep(0.2)
            connection.sendall(body[len(body) // 2 :])
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            found = json.loads(answer.read())
        output, _ = served.process.communicate(timeout=30)
    assert answer.status == 200
    np.testing.assert_array_equal(logits_of(found), infer(images(1)))
    assert (served.process.returncode, output) == (0, "stopped\n")
    assert (tmp_path / "log").read_text() == ""


def test_a_bundle_that_was_changed_is_not_served(tmp_path: Path) -> None:
    make_bundle(tmp_path / "tiny", tiny_model(), target="ort-cpu", classes=CLASSES)
    engine = tmp_path / "tiny" / "engine.onnx"
    damaged = bytearray(engine.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    engine.write_bytes(damaged)
    assert "'engine.onnx' has changed" in refused(str(tmp_path / "tiny"))


def test_a_signature_can_be_demanded(bundle: Path, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        make_keys(tmp_path / name)
    key = str(tmp_path / "ours.pub")
    assert "not signed" in refused(str(bundle), "--key", key)
    make_bundle(tmp_path / "tiny", tiny_model(), target="ort-cpu", classes=CLASSES)
    sign_bundle(tmp_path / "tiny", tmp_path / "theirs")
    assert "signature" in refused(str(tmp_path / "tiny"), "--key", key)


def test_another_set_up_is_served_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    make_bundle(folder, tiny_model(), target="ort-cpu", classes=CLASSES, device="another CPU")
    assert "certified on another set-up: device" in refused(str(folder))
    with serving(folder, tmp_path / "log", "--any-fingerprint") as served:
        assert served.get("/v2/health/ready")


def test_names_that_do_not_fit_the_logits_are_found_at_once(tmp_path: Path) -> None:
    make_bundle(tmp_path / "tiny", tiny_model(), target="ort-cpu", classes=CLASSES[:4])
    said = refused(str(tmp_path / "tiny"))
    assert "the engine gives 5 logits, the manifest names 4 classes" in said


def test_a_port_that_is_taken(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused(str(bundle), "--port", str(taken.getsockname()[1]))
    assert "cannot listen on 127.0.0.1" in said


def test_openvino_is_served_as_well(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    make_bundle(tmp_path / "tiny", tiny_model(), target="openvino-cpu", classes=CLASSES)
    with Bundle.open(tmp_path / "tiny").load() as engine:
        wanted = engine.infer(images(3))
    with serving(tmp_path / "tiny", tmp_path / "log") as served:
        np.testing.assert_array_equal(logits_of(served.infer(tensor(images(3)))), wanted)


SERVE = """
import sys
from pathlib import Path
from examples.serve.app import Limits, make_app
from examples.serve.pool import Pool
from pipeline.bundle import Bundle

bundle = Bundle.open(Path(sys.argv[1]))
with Pool(bundle, 1, waiting=1, any_fingerprint=False) as pool:
    make_app(bundle.manifest, pool, Limits())
print(sorted({"torch", "torchvision", "plotly"} & set(sys.modules)))
"""


def test_the_server_needs_no_torch(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(bundle)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
