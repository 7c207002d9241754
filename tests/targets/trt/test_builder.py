"""The builder with TensorRT-RTX, which needs no GPU; TensorRT's own parts with a stand-in."""

from __future__ import annotations

import _thread
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from targets.errors import BuildError
from targets.signature import Signature
from targets.trt.builder import (
    BuildSettings,
    _add_profile,
    _TimingCache,
    build_plan,
    known_capabilities,
    timing_cache_path,
)
from targets.trt.graph import Request, TypedModel, typed_model

from ..tiny_onnx import images, tiny_model

trt = pytest.importorskip("tensorrt_rtx")


def fp32(model: bytes | None = None) -> TypedModel:
    return typed_model(model or tiny_model(), Request("fp32", 2))


def dynamic(batch: int = 4) -> TypedModel:
    model = onnx.load_from_string(tiny_model())
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return typed_model(model.SerializeToString(), Request("fp32", batch))


def odd_model(operator: str, domain: str = "") -> TypedModel:
    """A network with one node that TensorRT does not know."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], name="flatten"),
        helper.make_node(operator, ["flat"], ["logits"], name="odd_one", domain=domain),
    ]
    source = helper.make_tensor_value_info("images", TensorProto.FLOAT, [2, 3, 8, 8])
    sink = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 192])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("acme", 1)]
    graph = helper.make_graph(nodes, "odd", [source], [sink])
    content = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return TypedModel(content, Signature("images", "logits", (2, 3, 8, 8), 192), False)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_layers_have_the_types_of_the_graph(precision: str) -> None:
    model = typed_model(tiny_model(), Request(precision, 2, [images(8)]))
    plan = build_plan(trt, model, BuildSettings())
    types = plan.facts["layers_by_type"]
    assert plan.facts["plan_bytes"] == len(plan.content) > 10_000
    assert plan.facts["build_s"] > 0
    if precision == "fp32":
        assert set(types) == {"float"}
    if precision == "fp16":
        assert types["half"] > types["float"]
    if precision == "int8":
        assert types["int8"] > 0
        assert types["float"] > 0
        assert "half" not in types


def test_a_dynamic_batch_builds_with_a_profile() -> None:
    plan = build_plan(trt, dynamic(), BuildSettings())
    assert plan.facts["has_dynamic_batch"]
    assert plan.content


def test_a_dynamic_batch_without_a_profile_is_refused_in_words() -> None:
    model = dynamic()
    unprofiled = TypedModel(model.onnx, model.signature, has_dynamic_batch=False)
    with pytest.raises(BuildError, match="no optimization profile has been defined"):
        build_plan(trt, unprofiled, BuildSettings())


def test_an_impossible_profile_is_refused() -> None:
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    config = builder.create_builder_config()
    with pytest.raises(BuildError, match="refused the optimisation profile.*batch 9 to 4"):
        _add_profile(trt, builder, config, "images", (4, 3, 8, 8), fewest=9)


@pytest.mark.parametrize(
    ("operator", "domain", "words"),
    [
        ("Unique", "", r"node 'odd_one' \(Unique\): the operator is not supported \("),
        ("Wobble", "acme", r"node 'odd_one' \(Wobble\): the node is invalid or unknown.*Plugin"),
    ],
)
def test_a_refused_operator_is_named(operator: str, domain: str, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        build_plan(trt, odd_model(operator, domain), BuildSettings())


def test_an_empty_network_is_no_success() -> None:
    # its parser takes this for a network without layers
    rubbish = TypedModel(b"hello", Signature("images", "logits", (2, 3, 8, 8), 5), False)
    with pytest.raises(BuildError, match="0 inputs, 0 outputs, 0 layers"):
        build_plan(trt, rubbish, BuildSettings())


def test_capabilities_are_those_of_the_module() -> None:
    known = known_capabilities(trt)
    assert {"sm75", "sm86", "sm89", "sm120"} <= set(known)
    assert "sm90" not in known
    assert known_capabilities(ModuleType("tensorrt")) == ()


def test_one_plan_serves_several_capabilities() -> None:
    settings = BuildSettings(compute_capabilities=("sm86", "sm89", "sm120"))
    several = build_plan(trt, fp32(), settings).content
    one = build_plan(trt, fp32(), BuildSettings(compute_capabilities=("sm89",))).content
    assert len(several) < 1.5 * len(one)


@pytest.mark.parametrize("name", ["sm90", "sm100", "current"])
def test_an_unknown_capability_is_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(BuildError, match=rf"cannot build for {name} .*sm75, sm80, sm86, sm89"):
        build_plan(trt, fp32(), BuildSettings(compute_capabilities=(name,)))


def test_what_a_capability_lacks_is_told() -> None:
    with pytest.raises(BuildError, match=r"\(SM75\): FP32 GEMM is not supported"):
        build_plan(trt, fp32(), BuildSettings(compute_capabilities=("sm75",)))
    half = typed_model(tiny_model(), Request("fp16", 2, [images(4)]))
    assert build_plan(trt, half, BuildSettings(compute_capabilities=("sm75",))).content


def test_progress_is_told_step_by_step() -> None:
    seen: list[tuple[str, int, int]] = []
    build_plan(trt, fp32(), BuildSettings(on_progress=lambda *step: not seen.append(step)))
    assert len({phase for phase, _, _ in seen}) > 3
    assert all(1 <= step <= steps for _, step, steps in seen)


def test_a_callback_cancels_the_build() -> None:
    seen: list[str] = []

    def stop_at_third(phase: str, step: int, steps: int) -> bool:
        seen.append(phase)
        return len(seen) < 3

    with pytest.raises(BuildError, match="the build was cancelled"):
        build_plan(trt, fp32(), BuildSettings(on_progress=stop_at_third))
    assert len(seen) == 3
    assert build_plan(trt, fp32(), BuildSettings()).content  # the next one is not disturbed


@pytest.mark.parametrize("raised", [ZeroDivisionError, KeyboardInterrupt])
def test_what_a_callback_raises_comes_through(raised: type[BaseException]) -> None:
    def fail(phase: str, step: int, steps: int) -> bool:
        raise raised

    with pytest.raises(raised):
        build_plan(trt, fp32(), BuildSettings(on_progress=fail))
    assert build_plan(trt, fp32(), BuildSettings()).content


def test_ctrl_c_stops_the_build() -> None:
    seen: list[str] = []

    def interrupted(phase: str, step: int, steps: int) -> bool:
        seen.append(phase)
        if len(seen) == 2:
            _thread.interrupt_main()
        return True

    with pytest.raises(KeyboardInterrupt):
        build_plan(trt, fp32(), BuildSettings(on_progress=interrupted))
    assert len(seen) < 6


class FakeConfig:
    """A builder configuration of TensorRT, where timing caches are real."""

    def __init__(self, refuses: bytes = b"") -> None:
        self.refuses = refuses
        self.cache: Any = None

    def create_timing_cache(self, content: bytes) -> Any:
        if self.refuses and content == self.refuses:
            return None
        return SimpleNamespace(content=content, serialize=lambda: content + b"+1")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


def test_the_timing_cache_goes_from_build_to_build(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.cache"
    states = []
    for _ in range(2):
        cache = _TimingCache(ModuleType("tensorrt"), FakeConfig(), path)
        states.append(cache.state)
        cache.save()
    assert states == ["started empty", "2 bytes read"]
    assert path.read_bytes() == b"+1+1"
    assert list(path.parent.iterdir()) == [path]


def test_a_refused_timing_cache_is_told_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    path.write_bytes(b"corrupt")
    cache = _TimingCache(ModuleType("tensorrt"), FakeConfig(refuses=b"corrupt"), path)
    assert cache.state == "the stored one was refused; started empty"
    cache.save()
    assert path.read_bytes() == b"+1"


def test_tensorrt_rtx_keeps_no_timing_cache(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    plan = build_plan(trt, fp32(), BuildSettings(timing_cache=path))
    assert plan.facts["timing_cache"] == "none"
    assert not path.exists()


def test_timing_caches_are_kept_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = timing_cache_path("tensorrt 11.4.0", "NVIDIA L4 (sm89)")
    assert path == tmp_path / "wgates" / "timing" / "tensorrt-11.4.0-NVIDIA-L4-sm89.cache"
    assert path != timing_cache_path("tensorrt 11.4.1", "NVIDIA L4 (sm89)")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert timing_cache_path("a", "b").parent == Path.home() / ".cache" / "wgates" / "timing"
