"""Clients of the KServe v2 protocol that do little but wait, so that one core can hold many."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass

import numpy as np

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_JSON_LENGTH = re.compile(rb"\r\ninference-header-content-length: (\d+)\r\n", re.IGNORECASE)
_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Requests:
    """One request for the logits of an image, to be sent over and over."""

    head: bytes
    body: bytes

    @classmethod
    def of(cls, model: str, image: np.ndarray, form: str) -> Requests:
        """`image` is (n, C, H, W) float32; `form` is "JSON" or "binary", in both directions."""
        given = {"name": "input", "shape": list(image.shape), "datatype": "FP32"}
        wanted = {"name": "output", "parameters": {"binary_data": form == "binary"}}
        document = {"inputs": [given], "outputs": [wanted]}
        if form == "binary":
            given["parameters"] = {"binary_data_size": image.nbytes}
            front = json.dumps(document).encode()
            body, more = front + image.tobytes(), f"Inference-Header-Content-Length: {len(front)}"
        else:
            given["data"] = image.ravel().tolist()
            body, more = json.dumps(document).encode(), "Content-Type: application/json"
        lines = (
            f"POST /v2/models/{model}/infer HTTP/1.1",
            "Host: localhost",
            f"Content-Length: {len(body)}",
            more,
        )
        return cls("\r\n".join(lines).encode() + _END, body)

    @staticmethod
    def logits(answer: bytes) -> np.ndarray:
        """The (n, classes) logits of a whole HTTP answer."""
        head, _, body = answer.partition(_END)
        length = _JSON_LENGTH.search(head + b"\r\n")
        end = int(length[1]) if length else len(body)
        (output,) = json.loads(body[:end])["outputs"]
        if length:
            values = np.frombuffer(body[end:], "<f4")
        else:
            values = np.array(output["data"], np.float32)
        return values.reshape(output["shape"])


class _Client(asyncio.Protocol):
    """A connection that sends its next request as soon as the last one is answered."""

    def __init__(self, requests: Requests, seconds: float) -> None:
        self._request = requests.head + requests.body
        self._seconds, self._answer, self._length = seconds, b"", 0
        self.latencies_ns: list[int] = []
        self.last_answer = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def start(self) -> None:
        self._began = time.perf_counter_ns()
        self._until = self._began + self._seconds * 1e9
        self._send(self._began)

    def _send(self, now: int) -> None:
        self._answer, self._length, self._sent = b"", 0, now
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._length and _END in self._answer:
            self._length = self._answer.index(_END) + len(_END) + _content_length(self._answer)
        if not self._length or len(self._answer) < self._length:
            return
        now = time.perf_counter_ns()
        self.latencies_ns.append(now - self._sent)
        if now < self._until:
            self._send(now)
            return
        self.last_answer = self._answer
        self._transport.close()
        self.done.set_result(now)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))


def _content_length(answer: bytes) -> int:
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError(f"the server refused a request: {answer[:300]!r}")
    found = _LENGTH.search(answer)
    if found is None:
        raise ConnectionError("an answer without its length")
    return int(found[1])


def load(
    port: int, requests: Requests, clients: int, seconds: float
) -> tuple[list[int], float, list[bytes]]:
    """What `clients` at once waited for each answer, in how many seconds, and their last answers.

    A request that was sent in time counts, and its waiting with it.
    """

    async def run() -> tuple[list[int], float, list[bytes]]:
        loop = asyncio.get_running_loop()
        made = [_Client(requests, seconds) for _ in range(clients)]
        for client in made:
            await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
        began = time.perf_counter_ns()
        for client in made:
            client.start()
        ended = max(await asyncio.gather(*(client.done for client in made)))
        waited = [latency for client in made for latency in client.latencies_ns]
        return waited, (ended - began) / 1e9, [client.last_answer for client in made]

    return asyncio.run(run())
