"""The configuration is compared after Triton's own parser has read it back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DeployError
from pipeline.triton import headed, parse_config, triton_config, triton_repository
from targets import load_target
from targets.base import TargetOptions, TritonServing
from tests.targets.tiny_onnx import CLASSES, images, tiny_model

SHAPE = (4, 3, 32, 48)


SERVING = TritonServing(
    "onnxruntime",
    parameters={"intra_op_thread_count": "2"},
    graph_level=2,
    needs=("a CPU",),
    doubts=("it may err",),
)


def written(serving: TritonServing = SERVING, instances: int = 1) -> str:
    return triton_config("resnet20", serving, input_shape=SHAPE, classes=10, instances=instances)


def served_as(target: str, **options: Any) -> TritonServing:
    serving = load_target(target, TargetOptions(**options)).triton()
    assert serving is not None
    return serving


def parameters_of(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def test_ports_carry_the_whole_static_shape() -> None:
    config = parse_config(written())
    (images,), (logits,) = config.input, config.output
    assert (images.name, tuple(images.dims)) == ("input", SHAPE)
    assert (logits.name, tuple(logits.dims)) == ("output", (4, 10))
    fp32 = type(images).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name["TYPE_FP32"]
    assert images.data_type == logits.data_type == fp32.number
    assert config.max_batch_size == 0
    assert (config.name, config.backend) == ("resnet20", "onnxruntime")


def test_a_fixed_batch_is_never_batched_dynamically_and_the_head_says_so() -> None:
    assert not parse_config(written()).HasField("dynamic_batching")
    assert "exactly 4 images" in written().splitlines()[0]
    one = headed(written(), SERVING, batch=1)
    assert "exactly 1 image:" in one.splitlines()[0]


def test_an_open_batch_axis_is_batched_dynamically() -> None:
    text = written(TritonServing("onnxruntime", max_batch=16))
    config = parse_config(text)
    assert config.max_batch_size == 16
    assert config.HasField("dynamic_batching")
    assert tuple(config.input[0].dims) == SHAPE[1:]
    assert tuple(config.output[0].dims) == (10,)
    (warmup,) = config.model_warmup
    assert (warmup.batch_size, tuple(warmup.inputs["input"].dims)) == (16, SHAPE[1:])
    assert "#" not in text


@pytest.mark.parametrize("instances", [1, 3])
def test_it_runs_as_it_was_verified(instances: int) -> None:
    config = parse_config(written(instances=instances))
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (instances, "KIND_CPU")
    assert parameters_of(config) == {"intra_op_thread_count": "2"}
    assert config.optimization.graph.level == 2


def test_what_instances_share_grows_with_them() -> None:
    serving = TritonServing("openvino", shared={"INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": 1})
    found = parameters_of(parse_config(written(serving, instances=3)))
    assert found == {"INFERENCE_NUM_THREADS": "6", "NUM_STREAMS": "3"}


def test_a_gpu_backend_without_levels() -> None:
    config = parse_config(written(TritonServing("tensorrt", on_gpu=True)))
    (group,) = config.instance_group
    assert (config.backend, group.Kind.Name(group.kind)) == ("tensorrt", "KIND_GPU")
    assert not config.HasField("optimization")
    assert not config.parameters


def test_the_head_says_what_who_serves_it_must_know() -> None:
    assert written().splitlines()[1:3] == ["# a CPU", "# it may err"]
    broken = TritonServing("tensorrt", doubts=("two\nlines: 1",))
    assert "# two lines: 1" in written(broken).splitlines()


def test_a_head_is_made_anew_and_the_rest_stays() -> None:
    text = "# of another machine\n" + written()
    again = headed(text, TritonServing("onnxruntime", doubts=("new",)), batch=4)
    assert parse_config(again) == parse_config(written())
    assert again.count("#") == 2
    assert "# new" in again
    assert headed(again, SERVING, batch=4) == written()


# what each target says --------------------------------------------------------------------


def test_an_optimised_engine_of_ours_is_not_optimised_again() -> None:
    # the backend reads 2 as "disable all" and -1, in spite of its name, as "basic"
    serving = served_as("ort-cpu", threads=3)
    assert serving.graph_level == 2
    assert serving.parameters == {
        "execution_mode": "0",
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "1",
    }
    assert "channels" in serving.needs[0]
    assert serving.doubts == ()


def test_what_triton_cannot_be_told_is_a_doubt() -> None:
    assert "asleep" in served_as("ort-cpu", spinning=False).doubts[0]
    assert "captures none" in served_as("ort-cuda", cuda_graph=True).doubts[0]


def test_cuda_computes_without_tf32_in_triton_as_well() -> None:
    config = parse_config(written(served_as("ort-cuda")))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    wanted = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
    assert dict(accelerator.parameters) == wanted


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_tensorrt_replays_graphs_where_it_was_measured_with_them(cuda_graph: bool) -> None:
    config = parse_config(written(served_as("trt-fp16", cuda_graph=cuda_graph)))
    assert config.optimization.cuda.graphs is cuda_graph


def test_an_onnx_repository_answers_as_its_engine(tmp_path: Path) -> None:
    """What the backend would do, done by hand: the file, the level, the threads, the labels."""
    runtime = pytest.importorskip("onnxruntime")
    target = load_target("ort-cpu", TargetOptions(batch=2, threads=1))
    serving, built = target.triton(), target.build(tiny_model(), tmp_path / "engine.onnx").engine
    assert serving is not None
    labels = tuple(f"class {number}" for number in range(CLASSES))
    files = triton_repository(
        "tiny",
        serving,
        input_shape=(2, 3, 8, 8),
        classes=labels,
        served=target.served_files(built),
        instances=2,
    )
    assert set(files) == {"tiny/config.pbtxt", "tiny/labels.txt", "tiny/1/model.onnx"}
    config = parse_config(files["tiny/config.pbtxt"].decode())
    assert config.optimization.graph.level == 2
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = int(parameters_of(config)["intra_op_thread_count"])
    options.log_severity_level = 3
    session = runtime.InferenceSession(files["tiny/1/model.onnx"], options)
    assert tuple(session.get_inputs()[0].shape) == tuple(config.input[0].dims)
    assert tuple(session.get_outputs()[0].shape) == tuple(config.output[0].dims)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images(2)})
    with target.load(built) as engine:
        assert (logits == engine.infer(images(2))).all()
    assert config.output[0].label_filename == "labels.txt"
    assert files["tiny/labels.txt"].decode().split("\n")[:-1] == list(labels)


def test_an_openvino_repository_is_compiled_as_its_config_says(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    target = load_target("openvino-cpu", TargetOptions(batch=2, threads=1))
    serving, built = target.triton(), target.build(tiny_model(), tmp_path / "engine").engine
    assert serving is not None
    served = target.served_files(built)
    for name, content in served.items():
        (tmp_path / name).write_bytes(content)
    text = triton_config("t", serving, input_shape=(2, 3, 8, 8), classes=CLASSES, instances=2)
    config = parse_config(text)
    model = openvino.Core().read_model(tmp_path / "model.xml")
    assert tuple(model.input(0).shape) == tuple(config.input[0].dims)
    assert tuple(model.output(0).shape) == tuple(config.output[0].dims)
    # a layout with a batch would make the backend fill in max_batch_size by itself
    assert not openvino.layout_helpers.has_batch(openvino.layout_helpers.get_layout(model.input(0)))
    settings = {key: int(value) for key, value in parameters_of(config).items()}
    assert settings == {"INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": 2}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    assert compiled.get_property("NUM_STREAMS") in (1, 2)  # 1 where one CPU is allowed


# what is refused --------------------------------------------------------------------------


def test_warm_up_sends_whole_batches_of_random_images() -> None:
    (warmup,) = parse_config(written()).model_warmup
    assert warmup.batch_size == 1  # what Triton wants of a model without batching
    assert warmup.count > 0
    assert list(warmup.inputs) == ["input"]
    assert tuple(warmup.inputs["input"].dims) == SHAPE
    assert warmup.inputs["input"].random_data


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", ".hidden", "ä", "x\n"])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(DeployError, match="cannot name a Triton model"):
        triton_config(name, SERVING, input_shape=SHAPE, classes=10)


@pytest.mark.parametrize("text", ["name: ", "no_such_field: 1", "max_batch_size: -"])
def test_a_damaged_configuration_is_an_error(text: str) -> None:
    with pytest.raises(DeployError, match=r"config\.pbtxt"):
        parse_config(text)


def test_without_tritonclient_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    with pytest.raises(DeployError) as caught:
        written()
    assert caught.value.fix == "pip install 'wgates[triton]'"
