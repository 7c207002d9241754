"""From a typed ONNX graph to a TensorRT plan, with the module `tensorrt` or `tensorrt_rtx`.

What the two modules or their versions differ in is asked by `hasattr`.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.base import Progress
from targets.errors import BuildError
from targets.files import write_whole
from targets.trt.graph import TypedModel
from targets.trt.log import (
    Watch,
    collected_errors,
    interruptible,
    process_log,
    progress_monitor,
)

OTHER_OPERATOR = "replace the operator, or choose another target or compute capability"
_WORDS = {
    "UNSUPPORTED_NODE": "the operator is not supported",
    "UNSUPPORTED_NODE_ATTR": "an attribute is not supported",
    "UNSUPPORTED_NODE_INPUT": "an input is not supported",
    "UNSUPPORTED_NODE_DATATYPE": "a data type is not supported",
    "UNSUPPORTED_NODE_DYNAMIC": "its dynamic shape is not supported",
    "UNSUPPORTED_NODE_SHAPE": "its shape is not supported",
    "INVALID_NODE": "the node is invalid or unknown",
}


@dataclass(frozen=True)
class BuildSettings:
    """How to build."""

    compute_capabilities: tuple[str, ...] = ()  # such as "sm89"; (): the builder's default
    threads: int = 1  # of the builder
    timing_cache: Path | None = None  # None: none is kept
    on_progress: Progress | None = None


@dataclass(frozen=True)
class BuiltPlan:
    """A serialised engine, and what was seen while it was built."""

    content: bytes
    facts: Mapping[str, Any]


def builds_ahead_of_time(trt: Any) -> bool:
    """Whether plans are built for named compute capabilities, without a GPU (TensorRT-RTX)."""
    return hasattr(trt, "ComputeCapability")


def known_capabilities(trt: Any) -> tuple[str, ...]:
    """Compute capabilities that can be named, such as "sm89", oldest first."""
    if not builds_ahead_of_time(trt):
        return ()
    members = trt.ComputeCapability.__members__
    return tuple(name.lower() for name in sorted(members, key=_number) if _number(name))


def build_plan(trt: Any, model: TypedModel, settings: BuildSettings) -> BuiltPlan:
    """Parse and build; BuildError with the offending node, or with TensorRT's own words."""
    watch = Watch(settings.on_progress)
    monitor = progress_monitor(trt, watch)  # must live as long as the build
    with collected_errors(trt) as errors:
        builder = trt.Builder(process_log(trt))
        builder.max_threads = settings.threads
        network, parser, parse_s = _parsed(trt, builder, model)
        layers = _layer_types(network)
        config = _configured(trt, builder, model, settings)
        config.progress_monitor = monitor
        cache = _TimingCache(trt, config, settings.timing_cache)
        start = time.perf_counter()
        with interruptible(watch):
            plan = builder.build_serialized_network(network, config)
        build_s = time.perf_counter() - start
        del parser  # owns weights that the network reads, so it had to live until here
        if watch.stopped_by is not None:
            raise watch.stopped_by
        if plan is None:
            raise BuildError(f"{trt.__name__} refused to build: {errors()}", fix=OTHER_OPERATOR)
        cache.save()
    content = bytes(plan)
    facts = {
        "layers_by_type": layers,
        "plan_bytes": len(content),
        "parse_s": round(parse_s, 3),
        "build_s": round(build_s, 3),
        "has_dynamic_batch": model.has_dynamic_batch,
        "timing_cache": cache.state,
    }
    return BuiltPlan(content, facts)


def _parsed(trt: Any, builder: Any, model: TypedModel) -> tuple[Any, Any, float]:
    """The network, the parser that made it, and seconds."""
    flags = trt.NetworkDefinitionCreationFlag
    # TensorRT 10 must be asked; later ones know nothing else and may drop the flag
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, process_log(trt))
    start = time.perf_counter()
    is_parsed = parser.parse(model.onnx)
    parse_s = time.perf_counter() - start
    if not is_parsed or parser.num_errors:
        raise _parse_error(trt, parser)
    if network.num_outputs != 1 or network.num_inputs != 1 or not network.num_layers:
        found = f"{network.num_inputs} inputs, {network.num_outputs} outputs"
        raise BuildError(
            f"{trt.__name__} parsed a network with {found}, {network.num_layers} layers",
            fix="export the network again: pipeline export",
        )
    return network, parser, parse_s


def _parse_error(trt: Any, parser: Any) -> BuildError:
    if not parser.num_errors:
        return BuildError(f"{trt.__name__} cannot parse the model", fix=OTHER_OPERATOR)
    error = parser.get_error(0)
    code = error.code().name
    words = _WORDS.get(code, code.lower().replace("_", " "))
    # what the parser adds may be the bare condition that failed: "false"
    added = "" if error.desc() in ("", "false") else f" ({' '.join(error.desc().split())})"
    if not error.node_operator():
        return BuildError(f"{trt.__name__} cannot parse the model: {words}{added}")
    node = f"node {error.node_name() or error.node()!r} ({error.node_operator()})"
    return BuildError(f"{trt.__name__} refused {node}: {words}{added}", fix=OTHER_OPERATOR)


def _layer_types(network: Any) -> dict[str, int]:
    """How many layers put out each type, such as {"half": 20, "float": 2}."""
    layers = map(network.get_layer, range(network.num_layers))
    types = (layer.get_output(0).dtype.name.lower() for layer in layers if layer.num_outputs)
    return dict(sorted(Counter(types).items()))


def _configured(trt: Any, builder: Any, model: TypedModel, settings: BuildSettings) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and no fp32: 10 bits of mantissa
    _set_capabilities(trt, config, settings.compute_capabilities)
    if model.has_dynamic_batch:
        _add_profile(trt, builder, config, model.signature.input_name, model.signature.input_shape)
    return config


def _set_capabilities(trt: Any, config: Any, names: tuple[str, ...]) -> None:
    known = known_capabilities(trt)
    if unknown := [name for name in names if name not in known]:
        listed = ", ".join(known) or "none: it builds for the GPU at hand"
        raise BuildError(
            f"{trt.__name__} cannot build for {', '.join(unknown)}",
            fix=f"choose among the compute capabilities {listed}",
        )
    if names:
        config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)


def _add_profile(
    trt: Any, builder: Any, config: Any, name: str, shape: tuple[int, ...], *, fewest: int = 1
) -> None:
    """Let the batch be anything from `fewest` to that of `shape`, the one to be quick at."""
    profile = builder.create_optimization_profile()
    profile.set_shape(name, (fewest, *shape[1:]), shape, shape)
    if config.add_optimization_profile(profile) < 0:
        sizes = f"batch {fewest} to {shape[0]}"
        raise BuildError(
            f"{trt.__name__} refused the optimisation profile of {name}: {sizes}",
            fix="choose another --batch",
        )


class _TimingCache:
    """Measured kernel times, kept from build to build where the builder measures any."""

    def __init__(self, trt: Any, config: Any, path: Path | None) -> None:
        self._config = config
        # TensorRT-RTX times nothing, and warns that its cache is a no-op
        self._path = None if builds_ahead_of_time(trt) else path
        self.state = "none" if self._path is None else self._attach(self._path)

    def save(self) -> None:
        """Store what was measured, for the next build."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, bytes(self._config.get_timing_cache().serialize()))

    def _attach(self, path: Path) -> str:
        stored = path.read_bytes() if path.exists() else b""
        cache = self._config.create_timing_cache(stored)
        if cache is not None and self._config.set_timing_cache(cache, False):
            return f"{len(stored)} bytes read" if stored else "started empty"
        empty = self._config.create_timing_cache(b"")
        if empty is None or not self._config.set_timing_cache(empty, False):
            raise BuildError("TensorRT takes no timing cache", fix=f"delete {path}")
        return "the stored one was refused; started empty"


def timing_cache_path(runtime: str, device: str) -> Path:
    """Where the timing cache of one version, such as "tensorrt 11.4.0", and device is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{runtime} {device}").strip("-")
    return Path(base) / "wgates" / "timing" / f"{name}.cache"


def _number(name: str) -> int:
    digits = name.upper().removeprefix("SM")
    return int(digits) if digits.isdigit() else 0
