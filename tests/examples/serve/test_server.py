"""The server as a process, over real connections; Triton's own client judges the protocol."""

from __future__ import annotations

import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.targets.tiny_onnx import images

from .conftest import CLASSES, INFER, Infer, Served, logits_of, tensor


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health(served: Served, path: str) -> None:
    assert served.get(path) == {path.rpartition("/")[2]: True}


def test_metadata(served: Served) -> None:
    assert set(served.get("/v2")) == {"name", "version", "extensions"}
    model = served.get("/v2/models/tiny")
    assert served.get("/v2/models/tiny/versions/1") == model
    assert (model["name"], model["versions"], model["platform"]) == (
        "tiny",
        ["1"],
        "wgates_ort-cpu",
    )
    assert served.get("/v2/models/tiny/ready") == {"name": "tiny", "ready": True}
    assert served.get("/v2/models/tiny/versions/1/ready") == {"name": "tiny", "ready": True}


@pytest.mark.parametrize("n", [1, 2, 5])
def test_answers_are_the_engines(served: Served, infer: Infer, n: int) -> None:
    found = logits_of(served.infer(tensor(images(n))))
    np.testing.assert_array_equal(found, infer(images(n)))


def test_a_version_can_be_named(served: Served, infer: Infer) -> None:
    body = json.dumps(tensor(images(1))).encode()
    status, _, answer = served.ask("POST", "/v2/models/tiny/versions/1/infer", body)
    assert status == 200
    np.testing.assert_array_equal(logits_of(json.loads(answer)), infer(images(1)))


# Triton's client --------------------------------------------------------------------------


@pytest.fixture
def client(served: Served):
    with triton.InferenceServerClient(f"127.0.0.1:{served.port}", concurrency=4) as found:
        yield found


def test_tritons_client_finds_server_and_model(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("tiny")["inputs"][0]["shape"] == [-1, 3, 8, 8]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tritons_client_gets_the_engines_logits(
    client: triton.InferenceServerClient, infer: Infer, binary_in: bool, binary_out: bool
) -> None:
    given = triton.InferInput("input", [3, 3, 8, 8], "FP32")
    given.set_data_from_numpy(images(3), binary_data=binary_in)
    wanted = triton.InferRequestedOutput("output", binary_data=binary_out)
    answer = client.infer("tiny", [given], outputs=[wanted], request_id="7")
    np.testing.assert_array_equal(answer.as_numpy("output"), infer(images(3)))
    assert answer.get_response()["id"] == "7"


def test_tritons_client_gets_names_for_pixels(
    client: triton.InferenceServerClient, infer: Infer
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8), np.uint8)
    parameters = client.get_model_metadata("tiny")["parameters"]
    mean, std = (np.array(parameters[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    logits = infer(((pixels / 255 - mean) / std).astype(np.float32))
    given = triton.InferInput("input", [2, 3, 8, 8], "UINT8")
    given.set_data_from_numpy(pixels)
    wanted = triton.InferRequestedOutput("output", class_count=2)
    found = client.infer("tiny", [given], outputs=[wanted]).as_numpy("output")
    assert found.shape == (2, 2)
    for texts, row in zip(found, logits, strict=True):
        for text, index in zip(texts, np.argsort(-row), strict=False):
            value, place, name = text.decode().split(":", 2)
            assert (int(place), name) == (index, CLASSES[index])
            assert float(value) == pytest.approx(row[index], abs=1e-4)


def test_tritons_client_raises_what_the_server_says(client: triton.InferenceServerClient) -> None:
    given = triton.InferInput("input", [1, 3, 4, 16], "FP32")
    given.set_data_from_numpy(images(1).reshape(1, 3, 4, 16))
    with pytest.raises(InferenceServerException, match=r"shape must be \[n, 3, 8, 8\]"):
        client.infer("tiny", [given])
    with pytest.raises(InferenceServerException, match="there is no model 'other'"):
        client.get_model_metadata("other")


# refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("GET", "/v2/models/tiny/versions/2", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/tiny/versions/2/infer", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/health/live", 405),
    ],
)
def test_what_is_not_there(served: Served, method: str, path: str, status: int) -> None:
    found, headers, body = served.ask(method, path)
    assert found == status
    assert headers["content-type"] == "application/json"
    assert list(json.loads(body)) == ["error"]


@pytest.mark.parametrize("length", ["x", "-1", "1.5", "", "٣", "9" * 30])
def test_a_length_that_is_none_is_refused(served: Served, length: str) -> None:
    header = {"Inference_Header_Content_Length": length.encode().decode("latin-1")}
    status, _, body = served.ask("POST", INFER, b"{}", **header)
    assert status == 400
    assert "is no number of bytes" in json.loads(body)["error"]


def test_bad_requests_are_told_and_the_server_goes_on(served: Served) -> None:
    for document in ({}, [], tensor(images(1), datatype="FP64"), tensor(images(1), data=[1])):
        status, _, body = served.ask("POST", INFER, json.dumps(document).encode())
        assert status == 400
        assert json.loads(body)["error"]
    logits_of(served.infer(tensor(images(1))))


def test_compressed_requests_are_refused(served: Served) -> None:
    status, _, body = served.ask("POST", INFER, b"x", Content_Encoding="gzip")
    assert (status, json.loads(body)) == (415, {"error": "compressed requests are not taken"})


def test_a_large_request_is_refused_before_it_is_sent(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode())
        connection.sendall(b"Content-Length: 1000000000\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413
        assert "more than 1048576 bytes" in json.loads(answer.read())["error"]
        assert connection.recv(1) == b""  # closed: what is left is not read


def test_a_request_that_grows_too_large_is_refused(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode())
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(17):
            connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413


def test_a_client_that_goes_away_harms_nobody(served: Served) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode())
            connection.sendall(b"Content-Length: 1000\r\n\r\n{")
    assert served.get("/v2/health/live")


def test_clients_side_by_side_get_their_own_answers(served: Served, infer: Infer) -> None:
    def one(seed: int) -> bool:
        given = images(1 + seed % 3, seed=seed)
        return np.array_equal(logits_of(served.infer(tensor(given))), infer(given))

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(one, range(40)))
