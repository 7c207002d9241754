"""The tables on what training costs."""

from __future__ import annotations

from typing import Any

from pipeline.pruning.projection import PROJECTIONS


def training(gated: dict[str, Any], loop: dict[str, Any]) -> str:
    """A gated step beside a dense one, and our loop beside a bare one."""
    machine = gated["environment"]["machine"]
    threads = machine["threads"]
    device = machine["device"] if gated["device"] == "cpu" else gated["device"]
    return "\n".join(
        [
            f"A gated training step over a dense one, {device}, "
            f"{'one thread' if threads == 1 else f'{threads} threads'}; the ratio of paired turns, "
            f"median (middle half). Goal: at most {gated['goal']:g}.",
            "",
            "| network, images | gates | time | memory | choosing a plan, s |",
            "|---" * 5 + "|",
            *(_case_row(case) for case in gated["cases"]),
            "",
            f"A plan is chosen {PROJECTIONS} times in a training, however long it is. "
            "Our training loop over a bare PyTorch loop in the same layout on the same batches, "
            f"{loop['settings']['model']} at batch {loop['settings']['batch']}: {_regimes(loop)}. "
            f"Goal: at most {loop['limit']:g}.",
            "",
            "A bare step channels last over one channels first (`--no-channels-last`): "
            f"{_layouts(loop)}.",
            "",
        ]
    )


def _case_row(case: dict[str, Any]) -> str:
    time = case["time_ratio"]
    low, high = time["quartiles"]
    return (
        f"| {case['case']} | {case['mode']} | {time['median']:.3f} ({low:.3f} to {high:.3f}) | "
        f"{case['memory_ratio']:.3f} | {case['choosing_s']:.2f} |"
    )


def _regimes(loop: dict[str, Any]) -> str:
    return "; ".join(f"{name} {_ratio(found)}" for name, found in loop["regimes"].items())


def _layouts(loop: dict[str, Any]) -> str:
    return "; ".join(f"{one['network']} at {one['size']} {_ratio(one)}" for one in loop["layouts"])


def _ratio(found: dict[str, Any]) -> str:
    low, high = found["ratio_middle_half"]
    return f"{found['ratio']:.3f} ({low:.3f} to {high:.3f})"
