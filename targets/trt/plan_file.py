"""What the file of a built TensorRT engine holds: the plan, and what it is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from targets.files import read_sealed, write_sealed


@dataclass(frozen=True)
class PlanHeader:
    """What a plan was built from and for."""

    target: str  # such as "trt-rtx-fp16"
    runtime: str  # such as "tensorrt_rtx 1.7.1.116"; plans load in the very same version only
    compute_capabilities: tuple[str, ...]  # asked for, such as "sm89"; (): the builder's default
    device: str  # that it was built on; "" where the builder needs none
    batch: int  # images per call
    onnx_sha256: str  # of the fp32 model that was given


def write_plan(out: Path, header: PlanHeader, plan: bytes) -> None:
    """Write an engine file in one step."""
    write_sealed(out, header, {"plan": plan})


def read_plan(engine: Path) -> tuple[PlanHeader, bytes]:
    """Header and bare plan of an engine file; EngineError unless its length and SHA-256 agree."""
    header, parts = read_sealed(engine, PlanHeader)
    return header, parts["plan"]


def bare(engine: Path) -> bytes:
    """The plan as TensorRT and Triton load it."""
    return read_plan(engine)[1]
