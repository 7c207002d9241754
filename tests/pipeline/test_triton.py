"""The configuration is compared after Triton's own parser has read it back."""

from __future__ import annotations

import sys

import pytest

from pipeline.errors import DeployError
from pipeline.triton import parse_config, triton_config
from targets import load_target
from targets.base import TargetOptions, TritonServing

SHAPE = (4, 3, 32, 48)


SERVING = TritonServing(
    "onnxruntime", parameters={"intra_op_thread_count": "2"}, graph_level=2, doubts=("it may err",)
)


def written(serving: TritonServing = SERVING) -> str:
    return triton_config("resnet20", serving, input_shape=SHAPE, classes=10)


def test_ports_carry_the_whole_static_shape() -> None:
    config = parse_config(written())
    (images,), (logits,) = config.input, config.output
    assert (images.name, tuple(images.dims)) == ("input", SHAPE)
    assert (logits.name, tuple(logits.dims)) == ("output", (4, 10))
    fp32 = type(images).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name["TYPE_FP32"]
    assert images.data_type == logits.data_type == fp32.number
    assert config.max_batch_size == 0
    assert (config.name, config.backend) == ("resnet20", "onnxruntime")


def test_it_runs_as_it_was_verified() -> None:
    config = parse_config(written())
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (1, "KIND_CPU")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {"intra_op_thread_count": "2"}
    assert config.optimization.graph.level == 2


def test_a_gpu_backend_without_levels() -> None:
    config = parse_config(written(TritonServing("tensorrt", on_gpu=True)))
    (group,) = config.instance_group
    assert (config.backend, group.Kind.Name(group.kind)) == ("tensorrt", "KIND_GPU")
    assert not config.HasField("optimization")
    assert not config.parameters


def test_doubts_stand_where_who_serves_it_will_look() -> None:
    assert written().splitlines()[0] == "# it may err"
    assert "#" not in written(TritonServing("tensorrt"))


def test_an_optimised_engine_of_ours_is_not_optimised_again() -> None:
    # the backend reads 2 as "disable all" and -1, in spite of its name, as "basic"
    serving = load_target("ort-cpu", TargetOptions(threads=3)).triton()
    assert serving is not None
    assert serving.graph_level == 2
    assert serving.parameters["intra_op_thread_count"] == "3"


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
