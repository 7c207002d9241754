from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from targets.errors import BuildError, EngineError
from targets.ort.session import open_session, refusals, stamp, translated

from ..wide_range import network, serialised

ort = pytest.importorskip("onnxruntime")
state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")


def with_odd(operator: str, name: str, domain: str = "", **attributes: object) -> bytes:
    """images -> the odd node -> flatten -> gemm."""
    odd = helper.make_node(operator, ["images"], ["odd.out"], name, domain=domain, **attributes)
    flat = helper.make_node("Flatten", ["odd.out"], ["flat"], "flat")
    gemm = helper.make_node("Gemm", ["flat", "w"], ["logits"], "gemm")
    weights = {"w": np.ones((192, 5), np.float32)}
    return serialised([odd, flat, gemm], weights, domains=(domain,) if domain else ())


def refusal(model: bytes | Path) -> BuildError:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(BuildError) as raised, refusals(model):
        open_session(ort, model, options, ["CPUExecutionProvider"], BuildError)
    return raised.value


@pytest.mark.parametrize(
    ("model", "blamed"),
    [
        (with_odd("Odd", "stem/odd"), r"node stem/odd \(Odd\): "),
        (with_odd("Odd", "stem/odd", "my.ops"), r"node stem/odd \(my\.ops:Odd\): "),
        (with_odd("Odd", "stem/odd", "com.microsoft"), r"node stem/odd \(com\.microsoft:Odd\): "),
        # without a name, a node is known by what it computes
        (with_odd("Odd", ""), r"node odd\.out \(Odd\): "),
        (with_odd("Odd", "", "my.ops"), r"node odd\.out \(my\.ops:Odd\): "),
        (with_odd("StringNormalizer", "text"), r"node text \(StringNormalizer\): "),
        (with_odd("Relu", "act", wrong=1), r"node act \(Relu\): "),
    ],
)
def test_a_refusal_names_the_node_and_its_operator(
    model: bytes, blamed: str, tmp_path: Path
) -> None:
    error = refusal(model)
    assert onnx.load_from_string(model).graph.node[0].op_type in error.message
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    for each in (error, refusal(path)):
        assert re.match(blamed, each.message)
        assert "another target" in each.fix


def test_a_refusal_without_a_culprit_says_what_the_runtime_said() -> None:
    error = refusal(b"garbage" * 100)
    assert error.message.startswith("ONNX Runtime refused the model: ")
    assert error.fix


def test_an_operator_without_a_kernel_is_named() -> None:
    # a valid operator on a type for which the CPU provider has no kernel
    nodes = [
        helper.make_node("Cast", ["images"], ["narrow"], "cast", to=TensorProto.BFLOAT16),
        helper.make_node("Softplus", ["narrow"], ["plus"], "softplus"),
        helper.make_node("Cast", ["plus"], ["wide"], "back", to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["wide"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "w"], ["logits"], "gemm"),
    ]
    error = refusal(serialised(nodes, {"w": np.ones((192, 5), np.float32)}, opset=22))
    assert error.message.startswith("node softplus (Softplus): ")


def test_errors_of_the_runtime_become_ours_and_others_pass() -> None:
    ours = pytest.raises(EngineError, match="while testing: it broke there")
    with ours, translated(EngineError, "while testing"):
        raise state.Fail("it broke\n  there")
    with pytest.raises(KeyError), translated(EngineError, "while testing"):
        raise KeyError("ours")


def test_a_stamp_leaves_the_graph_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "engine.onnx"
    path.write_bytes(network())
    stamp(path, {"key": "value", "other": "1"})
    stamped = onnx.load(path)
    assert {entry.key: entry.value for entry in stamped.metadata_props} == {
        "key": "value",
        "other": "1",
    }
    assert stamped.graph == onnx.load_from_string(network()).graph
