"""The table on serving over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def serve(result: dict[str, Any]) -> str:
    """One row a network and number of clients: the raw engine, then both forms of tensors."""
    networks = result["networks"]
    forms = next(iter(networks.values()))["request_bytes"]
    options = result["options"]
    return "\n".join(
        [
            f"`examples/serve` over loopback on `ort-cpu`, one thread, batch 1; server and clients "
            f"have a core each. {options['rounds']} rounds of {options['seconds']:g} s; answers a "
            "second and their share of the raw engine's (95 %), then p50 and p99 in ms.",
            "",
            "| image, clients | raw engine | " + " | ".join(forms) + " |",
            "|---" * (2 + len(forms)) + "|",
            *(row for name, found in networks.items() for row in _rows(name, found)),
            "",
            "Each client sends its next request when the last is answered, so that with several of "
            "them the latency is mostly waiting for the engine. A request of the larger image has "
            f"{_megabytes(networks)}.",
            "",
        ]
    )


def _rows(name: str, found: dict[str, Any]) -> Iterator[str]:
    cases = found["cases"]
    for clients in next(iter(cases.values())):
        cells = [_cell(cases[form][clients]) for form in cases]
        plural = "s" if clients != "1" else ""
        raw = f"{found['raw']['per_second']['median']:,.0f}; {_latency(found['raw'])}"
        yield f"| {name}, {clients} client{plural} | {raw} | {' | '.join(cells)} |"


def _cell(case: dict[str, Any]) -> str:
    low, high = case["of_raw"]["ci95"]
    share = f"{case['of_raw']['median']:.0%} ({low:.0%} to {high:.0%})"
    return f"{case['per_second']['median']:,.0f}, {share}; {_latency(case)}"


def _latency(case: dict[str, Any]) -> str:
    p50, p99 = case["latency_ms"]["p50"], case["latency_ms"]["p99"]
    return f"{p50:.2f}, {'too few' if p99 is None else f'{p99:.2f}'}"


def _megabytes(networks: dict[str, Any]) -> str:
    largest = max((found["request_bytes"] for found in networks.values()), key=lambda b: b["JSON"])
    return " and ".join(f"{size / 1e6:.1f} MB as {form}" for form, size in largest.items())
