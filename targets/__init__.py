"""Targets: one runtime at one precision each, listed by name and imported when used."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from targets.errors import TargetUnavailableError

if TYPE_CHECKING:
    from targets.base import Target, TargetOptions

__all__ = ["TARGETS", "known_targets", "load_target"]

ENTRY_POINTS = "wgates.targets"

# name -> "module:factory", where factory(options) makes the Target
TARGETS: dict[str, str] = {
    "ort-cpu": "targets.ort.cpu:OrtCpu",
    "ort-cpu-int8": "targets.ort.cpu:OrtCpuInt8",
    "openvino-cpu": "targets.ov.cpu:OpenvinoCpu",
    "openvino-cpu-fp16": "targets.ov.cpu:OpenvinoCpuFp16",
    "openvino-cpu-int8": "targets.ov.int8:OpenvinoCpuInt8",
    "ort-cuda": "targets.ort.cuda:OrtCuda",
    "ort-cuda-fp16": "targets.ort.cuda:OrtCudaFp16",
    "trt-fp32": "targets.trt.target:TrtFp32",
    "trt-fp16": "targets.trt.target:TrtFp16",
    "trt-int8": "targets.trt.target:TrtInt8",
    "trt-rtx-fp32": "targets.trt.target:TrtRtxFp32",
    "trt-rtx-fp16": "targets.trt.target:TrtRtxFp16",
    "trt-rtx-int8": "targets.trt.target:TrtRtxInt8",
    "fake": "targets.fake:FakeTarget",
}
HIDDEN = frozenset({"fake"})  # loaded when named, listed to nobody


def known_targets(*, include_hidden: bool = False) -> dict[str, str]:
    """Our targets and those of installed packages, name -> "module:factory"; ours win a clash."""
    found = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)} | TARGETS
    return {name: at for name, at in found.items() if include_hidden or name not in HIDDEN}


def load_target(name: str, options: TargetOptions) -> Target:
    """The target called `name`; one whose runtime is missing still says so by `is_available`."""
    everything = known_targets(include_hidden=True)
    if name not in everything:
        raise TargetUnavailableError(f"there is no target {name!r}", fix=_suggestion(name))
    module_name, _, factory = everything[name].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TargetUnavailableError(f"target {name!r} cannot be imported: {error}") from error
    return cast("Target", getattr(module, factory)(options))


def _suggestion(name: str) -> str:
    listed = sorted(known_targets())
    close = difflib.get_close_matches(name, listed, n=1)
    known = f"known targets: {', '.join(listed)}"
    return f"did you mean {close[0]!r}? {known}" if close else known
