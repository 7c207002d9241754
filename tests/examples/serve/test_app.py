"""Limits of the server, in this process: a slow engine, a slow client, a queue that is full."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn

from examples.serve.app import Limits, make_app
from examples.serve.pool import Pool
from examples.serve.protocol import RequestError
from pipeline.bundle import Bundle
from pipeline.errors import EngineError
from pipeline.manifest import Manifest
from targets.base import Engine, Images, Logits
from tests.targets.tiny_onnx import images

from .conftest import INFER, tensor

WARM = 10  # calls before the first request


class Gated(Engine):
    """Answers zeros once `gate` is open; fails on images of nothing but ones."""

    input_shape = (2, 3, 8, 8)

    def __init__(self, gate: threading.Event) -> None:
        self.gate, self.calls, self.threads, self.closed = gate, 0, set[int](), False

    def infer_batch(self, images: Images) -> Logits:
        self.calls += 1
        self.threads.add(threading.get_ident())
        if self.calls > WARM:
            assert self.gate.wait(30)
        if images.min() == 1:
            raise EngineError("it burns", fix="put it out")
        return np.zeros((2, 5), np.float32)

    def call(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


@contextmanager
def pool_of(engines: list[Gated], manifest: Manifest, waiting: int) -> Iterator[Pool]:
    left = iter(engines)
    bundle: Any = SimpleNamespace(manifest=manifest, load=lambda **_: next(left))
    with Pool(bundle, len(engines), waiting=waiting, any_fingerprint=False) as pool:
        yield pool
    assert all(engine.closed for engine in engines)


@contextmanager
def running(manifest: Manifest, pool: Pool, limits: Limits) -> Iterator[int]:
    """The port of a server in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        app = make_app(manifest, pool, limits)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, args=([door],))
        thread.start()
        try:
            yield door.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def manifest(bundle: Path) -> Manifest:
    return Bundle.open(bundle).manifest


def send(port: int, given: Images) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", INFER, json.dumps(tensor(given)).encode())
    return connection


def answer(connection: http.client.HTTPConnection) -> tuple[int, Any]:
    found = connection.getresponse()
    body = json.loads(found.read())
    connection.close()
    return found.status, body


def test_a_full_queue_refuses_and_the_rest_is_answered(manifest: Manifest) -> None:
    gate = threading.Event()
    engines = [Gated(gate), Gated(gate)]
    with pool_of(engines, manifest, 3) as pool, running(manifest, pool, Limits()) as port:
        taken = [send(port, images(1)) for _ in range(5)]
        while pool.free:
            time.sleep(0.01)
        status, body = answer(send(port, images(1)))
        assert (status, body) == (503, {"error": "too many requests are waiting (try again later)"})
        gate.set()
        assert [answer(one)[0] for one in taken] == [200] * 5
        assert answer(send(port, images(1)))[0] == 200
        assert pool.free == 5


def test_engines_work_side_by_side_each_on_one_thread_at_a_time(manifest: Manifest) -> None:
    gate = threading.Event()
    engines = [Gated(gate), Gated(gate)]
    with pool_of(engines, manifest, 9) as pool, running(manifest, pool, Limits()) as port:
        taken = [send(port, images(1)) for _ in range(4)]
        while min(engine.calls for engine in engines) <= WARM:
            time.sleep(0.01)
        assert [engine.calls for engine in engines] == [WARM + 1] * 2  # two run, two wait
        gate.set()
        assert [answer(one)[0] for one in taken] == [200] * 4


def test_the_event_loop_is_free_while_engines_work(manifest: Manifest) -> None:
    gate = threading.Event()
    with pool_of([Gated(gate)], manifest, 9) as pool, running(manifest, pool, Limits()) as port:
        waiting = send(port, images(1))
        health = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        health.request("GET", "/v2/health/live")
        assert answer(health) == (200, {"live": True})
        gate.set()
        assert answer(waiting)[0] == 200


def test_an_engine_that_fails_is_the_servers_fault_and_stays(manifest: Manifest) -> None:
    gate = threading.Event()
    gate.set()
    with pool_of([Gated(gate)], manifest, 9) as pool, running(manifest, pool, Limits()) as port:
        ones = np.ones((2, 3, 8, 8), np.float32)
        assert answer(send(port, ones)) == (500, {"error": "it burns (put it out)"})
        assert answer(send(port, images(1)))[0] == 200


def test_a_slow_client_loses_its_place(manifest: Manifest) -> None:
    gate, limits = threading.Event(), Limits(read_seconds=0.2)
    gate.set()
    with pool_of([Gated(gate)], manifest, 0) as pool, running(manifest, pool, limits) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
            found = http.client.HTTPResponse(slow)
            found.begin()
            assert found.status == 408
            assert "longer than 0.2 s" in json.loads(found.read())["error"]
            assert slow.recv(1) == b""
        assert answer(send(port, images(1)))[0] == 200


def test_a_place_is_given_back_after_a_failure(manifest: Manifest) -> None:
    gate = threading.Event()
    with pool_of([Gated(gate)], manifest, 0) as pool:
        with pytest.raises(ZeroDivisionError), pool.place():
            1 / 0  # noqa: B018
        with pool.place(), pytest.raises(RequestError) as caught, pool.place():
            pass
        assert caught.value.status == 503


def test_engines_that_were_loaded_are_freed_when_the_next_fails(manifest: Manifest) -> None:
    first = Gated(threading.Event())
    left = iter([first])

    def load(**_: object) -> Engine:
        try:
            return next(left)
        except StopIteration:
            raise EngineError("no memory") from None

    bundle: Any = SimpleNamespace(manifest=manifest, load=load)
    with pytest.raises(EngineError, match="no memory"):
        Pool(bundle, 2, waiting=0, any_fingerprint=False)
    assert first.closed
