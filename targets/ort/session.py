"""What every adapter of ONNX Runtime shares: sessions, stamps, error translation, the engine."""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from targets.base import Engine, Images, Logits
from targets.errors import BuildError, DeployError, EngineError
from targets.files import REBUILD
from targets.samples import Samples
from targets.signature import Port, Signature

# what `level` means to Triton's backend: -1 basic, 1 extended, 2 none, anything else all
TRITON_OPTIMISES_ALL, TRITON_OPTIMISES_NOTHING = 0, 2
STAMP_TARGET = "wgates.target"  # in the metadata of an engine: who built it
ERRORS_ONLY = 3  # of log severity; hides the warning that a saved graph fits this machine only
ROTATED_INPUTS = 3  # tensors that successive calls rotate over
# how ONNX Runtime words a complaint about a node; it may leave the name or the node out
BLAME = tuple(
    map(
        re.compile,
        (
            r'In Node, \("(?P<name>[^"]*)", (?P<op>\w+), "(?P<domain>[^"]*)"',
            r"(?P<domain>[\w.]+):(?P<op>\w+)\(-?\d+\) is not a registered",
            r"implementation for (?P<op>\w+)\(\d+\) node with name '(?P<name>[^']*)'",
            r"of operator \((?P<op>\w+)\) in node \((?P<name>[^)]*)\)",
        ),
    )
)
# it quantises the weights of float nodes between Q/DQ pairs: of those that were to stay in fp32
NOT_ASKED_FOR = ["WeightBiasQuantization"]
REPLACE = "replace this operator in the network, or choose another target"


class OrtEngine(Engine):
    """A session with inputs and outputs bound in advance."""

    def __init__(self, runtime: Any, session: Any, signature: Signature) -> None:
        self.input_shape = signature.input_shape
        self._signature = signature
        self._session = session
        bindings = _bound_inputs(runtime, session, signature)
        self._bindings = itertools.cycle(bindings)

    def infer_batch(self, images: Images) -> Logits:
        self._check_open()
        with translated(EngineError, "the engine failed"):
            feed = {self._signature.input_name: images}
            (logits,) = self._session.run([self._signature.output_name], feed)
        return np.asarray(logits, dtype=np.float32)

    def call(self) -> None:
        self._check_open()
        self._session.run_with_iobinding(next(self._bindings))

    def time_ms(self, n: int) -> Samples:
        # translated out here: inside `call` it would be part of every timed call
        with translated(EngineError, "the engine failed"):
            return super().time_ms(n)

    def close(self) -> None:
        self._bindings = itertools.cycle(())
        self._session = None

    def _check_open(self) -> None:
        if self._session is None:
            raise EngineError("the engine was closed")


def _bound_inputs(runtime: Any, session: Any, signature: Signature) -> list[Any]:
    """Bindings of a few random inputs, each with its output allocated."""
    generator = np.random.default_rng(0)
    bindings = []
    for _ in range(ROTATED_INPUTS):
        images = generator.standard_normal(signature.input_shape, dtype=np.float32)
        logits = np.zeros((signature.input_shape[0], signature.classes), np.float32)
        binding = session.io_binding()
        binding.bind_ortvalue_input(
            signature.input_name, runtime.OrtValue.ortvalue_from_numpy(images)
        )
        binding.bind_ortvalue_output(
            signature.output_name, runtime.OrtValue.ortvalue_from_numpy(logits)
        )
        bindings.append(binding)
    return bindings


def open_session(
    runtime: Any,
    model: bytes | Path,
    options: Any,
    providers: Sequence[str],
    error: type[DeployError],
) -> Any:
    """A session on exactly these providers; `error` where ONNX Runtime fell back to others."""
    source = model if isinstance(model, bytes) else str(model)
    session = runtime.InferenceSession(
        source, options, providers=list(providers), disabled_optimizers=NOT_ASKED_FOR
    )
    given = session.get_providers()
    if given != list(providers):
        asked = ", ".join(providers)
        raise error(f"asked for {asked} only, ONNX Runtime gave {', '.join(given)}")
    return session


def ports(arguments: Sequence[Any]) -> list[Port]:
    """Inputs or outputs of a session as `Port`s."""
    return [Port(a.name, tuple(a.shape), a.type == "tensor(float)") for a in arguments]


def stamp(engine: Path, entries: Mapping[str, str]) -> None:
    """Add metadata to an ONNX file; protobuf messages merge when written one after the other."""
    onnx = importlib.import_module("onnx")
    addition = onnx.ModelProto()
    for key, value in entries.items():
        addition.metadata_props.add(key=key, value=value)
    with engine.open("ab") as file:
        file.write(addition.SerializeToString())


@contextmanager
def translated(error: type[DeployError], context: str, *, fix: str = "") -> Iterator[None]:
    """Turn ONNX Runtime's own exceptions into `error`; they share no base class but Exception."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = tuple(
        kind
        for kind in vars(state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    )
    try:
        yield
    except own as refused:
        message = " ".join(str(refused).split())
        otherwise = REBUILD if issubclass(error, EngineError) else ""
        raise error(f"{context}: {message}", fix=fix or otherwise) from refused


@contextmanager
def refusals(model: bytes | Path) -> Iterator[None]:
    """Turn ONNX Runtime's refusal of a model into a BuildError that names the nodes it blames."""
    try:
        with translated(BuildError, "ONNX Runtime refused the model"):
            yield
    except BuildError as refused:
        blamed = ", ".join(blamed_nodes(model, refused.message))
        where = f"node {blamed}: " if blamed else ""
        fix = refused.fix or (REPLACE if blamed else "export the network again")
        raise BuildError(where + refused.message, fix=fix) from refused.__cause__


def blamed_nodes(model: bytes | Path, message: str) -> tuple[str, ...]:
    """The nodes, as "name (operator)", that a message of ONNX Runtime is about; () if unknown."""
    found = next((match for form in BLAME if (match := form.search(message))), None)
    if found is None:
        return ()
    blamed = found.groupdict()
    if name := blamed.get("name"):
        return (f"{name} ({blamed['op']})",)
    domain = blamed.get("domain") or ""
    alike = [n for n in _nodes_of(model) if (n.op_type, n.domain) == (blamed["op"], domain)]
    shown = f"{domain}:{blamed['op']}" if domain else blamed["op"]
    return tuple(f"{n.name or n.output[0]} ({shown})" for n in alike)


def _nodes_of(model: bytes | Path) -> Sequence[Any]:
    onnx = importlib.import_module("onnx")
    serialised = model if isinstance(model, bytes) else model.read_bytes()
    nodes: Sequence[Any] = onnx.load_from_string(serialised).graph.node
    return nodes
