"""The table of what int8 brings."""

from __future__ import annotations

from typing import Any


def int8(ort: dict[str, Any], openvino: dict[str, Any]) -> str:
    """Latency of int8 over fp32 on the same runtime, one row a network."""
    rows = {}
    for found in ort["networks"]:
        name = found["network"].partition(",")[0]
        rows[name] = [_share(found["latency_over_fp32"]["asymmetric"])]
    for found in openvino["networks"]:
        cells = [_share(found[form]["over_fp32"]) for form in ("qdq", "nncf")]
        rows[found["network"]] = [*rows.get(found["network"], ["–"]), *cells]
    lines = [
        "Latency of int8 as a share of fp32's on the same runtime, batch 1, one thread, 95 % "
        "interval:",
        "",
        "| network | `ort-cpu-int8` | `openvino-cpu-int8`, Q/DQ | `openvino-cpu-int8`, NNCF |",
        "|---" * 4 + "|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
        "",
        "Q/DQ is what `openvino-cpu-int8` prefers where the two tie; both are measured on your "
        "network before one is chosen. The networks at 224 pixels have random weights. An "
        "asterisk: the measurement has doubts, which the result file lists.",
        "",
    ]
    return "\n".join(lines)


def _share(found: dict[str, Any]) -> str:
    ratio, interval = found["ratio"], found.get("ci95") or found["ratio_ci95"]
    doubt = "*" if found["doubts"] else ""
    return f"{ratio:.3f}{doubt} ({interval[0]:.3f} to {interval[1]:.3f})"
