"""The load test, on a tiny network: its figures are of answers that were right."""

from __future__ import annotations

import json
import os
import socket
import threading
from argparse import Namespace
from typing import Any

import numpy as np
import pytest

from benchmarks.networks import CLASSES, small_cnn
from benchmarks.serve import CLIENTS, FORMS, Block, _measured, _summary
from benchmarks.serve_bundle import make_bundle
from benchmarks.serve_clients import Requests, load
from benchmarks.table_serve import serve as table

IMAGE = np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As the benchmark writes it, of rounds of 50 ms on one core."""
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        folder = tmp_path_factory.mktemp("load") / "tiny"
        names = tuple(map(str, range(CLASSES)))
        make_bundle(folder, small_cnn(8, size=8), target="ort-cpu", classes=names)
        options = Namespace(rounds=2, seconds=0.05, server_core=core, client_core=core)
        found = _measured(folder, options, "tiny")
    finally:
        os.sched_setaffinity(0, before)
    document = {"options": vars(options), "networks": {"8 px": {"width": 8, "size": 8, **found}}}
    return dict(json.loads(json.dumps(document)))


def test_every_case_was_answered_in_every_round(result: dict[str, Any]) -> None:
    found = result["networks"]["8 px"]
    assert set(found["cases"]) == set(FORMS)
    for cases in found["cases"].values():
        assert set(cases) == {str(clients) for clients in CLIENTS}
        for clients, case in cases.items():
            assert all(one["answers"] >= int(clients) for one in case["rounds"])
            assert case["latency_ms"]["p50"] > found["raw"]["latency_ms"]["p50"]
            assert case["of_raw"]["median"] > 0  # a stall of a raw block can make it any size
    assert found["raw"]["of_raw"] == {"median": 1.0, "ci95": [1.0, 1.0]}
    assert found["request_bytes"]["JSON"] > 2 * found["request_bytes"]["binary"]


def test_the_table_has_a_row_for_each_number_of_clients(result: dict[str, Any]) -> None:
    rows = [line for line in table(result).splitlines() if line.startswith("| 8 px, ")]
    assert [row.split("|")[1].strip() for row in rows] == [
        "8 px, 1 client",
        "8 px, 4 clients",
        "8 px, 16 clients",
    ]
    assert all(row.count("|") == 5 for row in rows)


def test_figures_are_those_of_the_blocks() -> None:
    raw = [Block([1_000_000] * 400, 0.4), Block([1_000_000] * 500, 0.5)]
    half = [Block([2_000_000] * 200, 0.4), Block([2_000_000] * 150, 0.3)]
    found = _summary(half, raw)
    assert found["answers"] == 350
    assert found["per_second"]["median"] == 500
    assert found["of_raw"]["median"] == 0.5
    assert found["latency_ms"] == {"p50": 2.0, "p90": 2.0, "p99": 2.0}
    assert _summary(half[:1], raw[:1])["latency_ms"]["p99"] is None  # too few to tell


def answering(answer: bytes) -> tuple[int, threading.Thread]:
    """A server that says one thing to one request and hangs up."""
    door = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with door, door.accept()[0] as connection:
            connection.recv(1 << 20)
            connection.sendall(answer)

    thread = threading.Thread(target=run)
    thread.start()
    return door.getsockname()[1], thread


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (b'HTTP/1.1 400 Bad Request\r\ncontent-length: 9\r\n\r\n{"error"}', "refused a request"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "without its length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}", "closed the connection"),
    ],
)
def test_an_answer_that_is_none_is_not_counted(answer: bytes, match: str) -> None:
    port, thread = answering(answer)
    with pytest.raises(ConnectionError, match=match):
        load(port, Requests.of("tiny", IMAGE, "JSON"), 1, 0.05)
    thread.join(10)


def test_binary_and_json_answers_are_read_alike() -> None:
    logits = np.array([[1.5, -2.0]], np.float32)
    output = {"name": "output", "shape": [1, 2], "datatype": "FP32"}
    front = json.dumps({"outputs": [output]}).encode()
    head = b"HTTP/1.1 200 OK\r\ninference-header-content-length: %d" % len(front)
    binary = head + b"\r\n\r\n" + front + logits.tobytes()
    output["data"] = [1.5, -2.0]
    plain = b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps({"outputs": [output]}).encode()
    for answer in (binary, plain):
        np.testing.assert_array_equal(Requests.logits(answer), logits)
