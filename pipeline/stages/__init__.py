"""STAGES, in order: the architecture on one screen."""

from __future__ import annotations

from pathlib import Path

from calibration.schemas import LPNET
from pipeline.files import json_in
from pipeline.options import (
    BuildOptions,
    CalibrateOptions,
    ExportOptions,
    FinetuneOptions,
    PackageOptions,
    PrepareOptions,
    PruneOptions,
    TraceOptions,
    VerifyOptions,
)
from pipeline.run import Stage


def _has_no_verdict(verify: Path) -> bool:
    found = json_in(verify / "certificate.json")
    return isinstance(found, dict) and found.get("verdict") == "inconclusive"


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            (),
            PrepareOptions,
            "pipeline.stages.prepare:execute",
            "dense weights, data card, dense top-1",
        ),
        Stage(
            "trace",
            ("prepare",),
            TraceOptions,
            "pipeline.stages.trace:execute",
            "channel groups, dense ONNX skeleton, feasibility",
        ),
        Stage(
            "calibrate",
            ("prepare", "trace"),
            CalibrateOptions,
            "pipeline.stages.calibrate:execute",
            "latency database and LPNet for the target",
            schema=LPNET,
        ),
        Stage(
            "prune",
            ("prepare", "trace", "calibrate"),
            PruneOptions,
            "pipeline.stages.prune:execute",
            "plan of kept channels that meets the budget",
        ),
        Stage(
            "finetune",
            ("prepare", "trace", "prune"),
            FinetuneOptions,
            "pipeline.stages.finetune:execute",
            "compact weights, accuracy recovered",
        ),
        Stage(
            "export",
            ("prepare", "trace", "finetune"),
            ExportOptions,
            "pipeline.stages.export:execute",
            "static ONNX graph, equal to torch",
        ),
        Stage(
            "build",
            ("prepare", "calibrate", "export"),
            BuildOptions,
            "pipeline.stages.build:execute",
            "optimised engine of the target",
        ),
        Stage(
            "verify",
            ("prune", "finetune", "export", "build"),
            VerifyOptions,
            "pipeline.stages.verify:execute",
            "certificate: parity, accuracy, latency, verdict",
            is_open=_has_no_verdict,
        ),
        Stage(
            "package",
            ("verify",),
            PackageOptions,
            "pipeline.stages.package:execute",
            "bundle for a serving team",
            ("bundle",),
        ),
    )
}
