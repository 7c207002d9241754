"""What HTTP costs: the server of examples/serve under load over loopback, beside the raw engine.

Each round times the raw engine, then, in random order, every form of tensor at every number of
clients; each client sends its next request when the last one is answered. The server, and the raw
engine, have one core to themselves, the clients another.

python -m benchmarks.serve                                     # about 9 minutes
python -m benchmarks.serve --short --server-core 0 --out try.json
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import environment, write_result
from benchmarks.networks import CLASSES, small_cnn
from benchmarks.serve_bundle import make_bundle
from benchmarks.serve_clients import Requests, load
from pipeline.bundle import Bundle
from targets.base import Engine
from targets.statistics import bootstrap_ci95, percentile_of, required_samples

NETWORKS = {"32 px": {"width": 64, "size": 32}, "224 px": {"width": 32, "size": 224}}
FORMS = ("JSON", "binary")
CLIENTS = (1, 4, 16)
SEED = 0
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Block:
    """Answers in a stretch of time."""

    latencies_ns: list[int]
    seconds: float
    server_cpu: float = 0.0  # CPU seconds a second, of the server and of the clients
    client_cpu: float = 0.0

    @property
    def per_second(self) -> float:
        return len(self.latencies_ns) / self.seconds


@dataclass(frozen=True)
class Server:
    """The server as a process, and the raw engine of the same bundle in this one."""

    process: subprocess.Popen[str]
    port: int
    engine: Engine
    core: int

    def cpu_seconds(self) -> float:
        # after the name, which may hold anything: field 14 and 15 are user and system time
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def main() -> None:
    options = _options()
    os.environ.update(ONE_THREAD)
    document: dict[str, Any] = {
        "command": " ".join(("python", "-m", "benchmarks.serve", *sys.argv[1:])),
        "options": vars(options),
        "seed": SEED,
        "server": {name: version(name) for name in ("fastapi", "uvicorn", "httptools", "uvloop")},
        "networks": {},
    }
    with tempfile.TemporaryDirectory() as place:
        for name, sizes in NETWORKS.items():
            folder = Path(place) / name.replace(" ", "-")
            with _pinned(options.server_core):
                document["environment"] = environment()
                make_bundle(
                    folder,
                    small_cnn(**sizes),
                    target="ort-cpu",
                    classes=tuple(f"class {number}" for number in range(CLASSES)),
                )
            found = _measured(folder, options, name)
            document["networks"][name] = {**sizes, **found}
    write_result(options.out, document)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each block")
    parser.add_argument("--short", action="store_true", help="two rounds of 0.3 s: does it work?")
    parser.add_argument("--server-core", type=int, default=1)
    parser.add_argument("--client-core", type=int, default=0)
    parser.add_argument("--out", default="serve.json", help="name of the result file")
    options = parser.parse_args()
    if options.short:
        options.rounds, options.seconds = 2, 0.3
    return options


@contextmanager
def _pinned(core: int) -> Iterator[None]:
    """This process, and those it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _served(bundle: Path, core: int) -> Iterator[Server]:
    command = [sys.executable, "-m", "examples.serve", str(bundle), "--port", "0"]
    with _pinned(core):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        engine = Bundle.open(bundle).load()
    with process, engine:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # all that it says before the end
            if "/v2/models/" not in line:
                raise SystemExit("the server did not start")
            port = int(line.rsplit(":", 1)[1].partition("/")[0])
            yield Server(process, port, engine, core)
        finally:
            process.terminate()


def _measured(bundle: Path, options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Every case of one network, and the raw engine."""
    order = random.Random(SEED)
    with _served(bundle, options.server_core) as server:
        generator = np.random.default_rng(SEED)
        image = generator.standard_normal(server.engine.input_shape, dtype=np.float32)
        requests = {form: Requests.of(bundle.name, image, form) for form in FORMS}
        expected = server.engine.infer(image)
        raw: list[Block] = []
        cases: dict[tuple[str, int], list[Block]] = {(f, n): [] for f in FORMS for n in CLIENTS}
        for _ in range(options.rounds):
            raw.append(_raw_block(server, image, options.seconds))
            for form, clients in order.sample(sorted(cases), len(cases)):
                block = _block(server, requests[form], clients, options, expected)
                cases[form, clients].append(block)
            print(f"{name}: round {len(raw)} of {options.rounds}", flush=True)
    found = {form: {} for form in FORMS}
    for (form, clients), blocks in cases.items():
        found[form][str(clients)] = _summary(blocks, raw)
        _print_case(f"{name}, {form}, {clients} clients", found[form][str(clients)])
    sizes = {form: len(requests[form].body) for form in FORMS}
    return {"request_bytes": sizes, "raw": _summary(raw, raw), "cases": found}


def _raw_block(server: Server, image: np.ndarray, seconds: float) -> Block:
    """The engine without a server: what the server's thread calls for each request."""
    latencies: list[int] = []
    with _pinned(server.core):
        for _ in range(5):
            server.engine.infer(image)
        start = before = time.perf_counter_ns()
        while before - start < seconds * 1e9:
            server.engine.infer(image)
            now = time.perf_counter_ns()
            latencies.append(now - before)
            before = now
    return Block(latencies, (before - start) / 1e9)


def _block(
    server: Server,
    requests: Requests,
    clients: int,
    options: argparse.Namespace,
    expected: np.ndarray,
) -> Block:
    with _pinned(options.client_core):
        server_before, own_before = server.cpu_seconds(), time.process_time()
        latencies, seconds, answers = load(server.port, requests, clients, options.seconds)
        server_cpu = server.cpu_seconds() - server_before
        own_cpu = time.process_time() - own_before
    for answer in answers:
        if not np.array_equal(requests.logits(answer), expected):
            raise SystemExit("an answer is not the engine's")
    return Block(latencies, seconds, server_cpu / seconds, own_cpu / seconds)


def _summary(blocks: list[Block], raw: list[Block]) -> dict[str, Any]:
    """Figures of all rounds; `of_raw` compares each round with the raw engine in the same round."""
    rates = [block.per_second for block in blocks]
    shares = [block.per_second / own.per_second for block, own in zip(blocks, raw, strict=True)]
    pooled = np.concatenate([block.latencies_ns for block in blocks]) / 1e6
    return {
        "answers": len(pooled),
        "per_second": _with_interval(rates),
        "of_raw": _with_interval(shares),
        "latency_ms": {
            f"p{percentile}": _percentile(pooled, percentile) for percentile in (50, 90, 99)
        },
        "rounds": [
            {
                "answers": len(block.latencies_ns),
                "seconds": block.seconds,
                "p50_ms": float(np.median(block.latencies_ns)) / 1e6,
                "p99_ms": float(np.quantile(block.latencies_ns, 0.99)) / 1e6,
                "most_ms": max(block.latencies_ns) / 1e6,
                "server_cpu": block.server_cpu,
                "client_cpu": block.client_cpu,
            }
            for block in blocks
        ],
    }


def _with_interval(values: list[float]) -> dict[str, Any]:
    return {"median": float(np.median(values)), "ci95": bootstrap_ci95(values)}


def _percentile(pooled: np.ndarray, percentile: float) -> float | None:
    """None where the samples are too few to tell."""
    if len(pooled) < required_samples(percentile):
        return None
    return percentile_of(pooled, percentile)


def _print_case(label: str, found: dict[str, Any]) -> None:
    p50, p99 = found["latency_ms"]["p50"], found["latency_ms"]["p99"]
    print(
        f"  {label:28s} {found['per_second']['median']:8.1f} a second "
        f"({found['of_raw']['median']:.0%} of the raw engine), p50 {p50:.3f} ms, p99 "
        + ("too few" if p99 is None else f"{p99:.3f} ms")
    )


if __name__ == "__main__":
    main()
