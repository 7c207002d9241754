"""What `pipeline check` can be told; no stage of a run."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.bounds import Share, option
from pipeline.budget import Percentile


@dataclass(frozen=True)
class CheckOptions:
    """A candidate's latency against a baseline's, as a gate."""

    margin: Share | None = option(
        None, "largest slowdown to let pass (unset: 2.5%, or what this runner can tell)", above=0
    )
    budget: str | None = option(
        None, "largest latency, such as 4.0ms (unset: the bundle's own budget, if it has one)"
    )
    percentile: Percentile | None = option(
        None, "which percentile of the latency is judged (unset: the bundle's, or p50)"
    )
    target: str | None = option(
        None, "runtime and precision that ONNX files are built for; see: pipeline targets"
    )
    threads: int = option(
        1, "threads of engines built from ONNX; 0: as many as the affinity mask allows", least=0
    )
    processes: int = option(40, "most fresh processes to measure in", least=9)
    block_seconds: float = option(0.3, "seconds of one timed block", above=0)
    time: float = option(2.0, "stop measuring after this many minutes", above=0)
    parity: float | None = option(
        None,
        "largest |candidate - baseline| over the largest |logit| (unset: told, not judged)",
        least=0,
    )
    watchdog: float = option(
        10.0, "give a build, a load or an engine's answer up that takes this many minutes", above=0
    )
    data: str | None = option(
        None, "images to judge accuracy on, named as for: pipeline prepare --data"
    )
    accuracy_loss: Share = option(
        Share(0.01), "most top-1 that the candidate may lose on the data's test images", least=0
    )
