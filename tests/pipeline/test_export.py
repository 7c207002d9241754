from __future__ import annotations

import logging
import site
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, nn

from calibration.lpnet import one_thread
from pipeline.errors import ModelError
from pipeline.export import INPUT, OPSET, OUTPUT, export_onnx
from pipeline.unfused import run_onnx

from .pruning.networks import (
    BATCH,
    CLASSES,
    NAMED,
    Net,
    conv,
    named,
    pooled,
    seeded,
)

EXPECTED = [  # one of each family; the traces are shared with the tests of pruning
    "wgates:resnet20",
    "wgates:resnet20a",
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:vgg16_bn",
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def small() -> nn.Module:
    with seeded():
        return Net(
            lambda s, x: s.head(s.drop(pooled(F.relu(s.n(s.a(x)))))),
            a=conv(3, 8),
            n=nn.BatchNorm2d(8),
            drop=nn.Dropout(0.5),
            head=nn.Linear(8, CLASSES),
        )


def images(n: int = BATCH) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def shape_of(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param
        for dim in value.type.tensor_type.shape.dim
    )


def local_paths() -> list[bytes]:
    here = Path(__file__).resolve().parents[2]
    return [str(path).encode() for path in (here, Path.home(), *site.getsitepackages())]


@pytest.mark.parametrize("spec", NAMED)
def test_the_skeleton_keeps_the_state_dict_names(spec: str) -> None:
    network = named(spec)
    proto = network.skeleton.proto()
    found = {item.name: (tuple(item.dims), item.data_type) for item in proto.graph.initializer}
    state = {
        name: tuple(tensor.shape)
        for name, tensor in network.model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    constants = [found.pop(name) for name in set(found) - set(state)]
    assert {name: dims for name, (dims, _) in found.items()} == state
    # what is left are axes, bounds, shapes and clip limits, not weights
    assert all(kind == TensorProto.INT64 or np.prod(dims) == 1 for dims, kind in constants)


@pytest.mark.parametrize("spec", EXPECTED)
def test_the_skeleton_is_static_valid_and_free_of_local_paths(spec: str) -> None:
    network = named(spec)
    proto = network.skeleton.proto()
    onnx.checker.check_model(proto, full_check=True)
    (source,), (result,) = proto.graph.input, proto.graph.output
    assert (source.name, shape_of(source)) == (INPUT, tuple(network.images.shape))
    assert (result.name, shape_of(result)) == (OUTPUT, (BATCH, CLASSES))
    assert {(item.domain, item.version) for item in proto.opset_import} == {("", OPSET)}
    names = [node.name for node in proto.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert not [path for path in local_paths() if path in network.skeleton.onnx_bytes]


def test_the_final_graph_folds_batch_norm_and_is_free_of_local_paths() -> None:
    data = export_onnx(small(), images())
    operators = [node.op_type for node in onnx.load_from_string(data).graph.node]
    assert "Conv" in operators
    assert "BatchNormalization" not in operators
    assert not [path for path in local_paths() if path in data]
    kept = export_onnx(small(), images(), keep_names=True)
    operators = [node.op_type for node in onnx.load_from_string(kept).graph.node]
    assert "BatchNormalization" in operators


@pytest.mark.parametrize("keep_names", [False, True])
def test_a_train_mode_model_exports_as_eval_and_stays_in_train_mode(keep_names: bool) -> None:
    model = small().train()
    model.drop.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = export_onnx(model, images(), keep_names=keep_names)
    assert (model.training, model.n.training, model.drop.training) == (True, True, False)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        expected = model.eval()(images()).numpy()
    assert np.abs(run_onnx(data, images().numpy()) - expected).max() < 1e-5


def test_running_splits_images_into_the_static_batch() -> None:
    model = small().eval()
    data = export_onnx(model, images())
    with torch.no_grad():
        expected = model(images(6)).numpy()
    assert np.abs(run_onnx(data, images(6).numpy()) - expected).max() < 1e-5


def test_a_bias_free_convolution_gets_no_bias() -> None:
    model = Net(lambda s, x: pooled(s.a(x)), a=nn.Conv2d(3, 8, 3, bias=False))
    for keep_names in (False, True):
        proto = onnx.load_from_string(export_onnx(model, images(), keep_names=keep_names))
        (layer,) = [node for node in proto.graph.node if node.op_type == "Conv"]
        assert len(layer.input) == 2


def test_two_outputs_are_refused() -> None:
    model = Net(lambda s, x: (pooled(s.a(x)), s.a(x)), a=conv(3, 8))
    with pytest.raises(ModelError, match="one image input and one logits output"):
        export_onnx(model, images())


def deciding() -> Net:
    return Net(lambda s, x: pooled(s.a(x)) if x.sum().item() > 0 else pooled(x), a=conv(3, 8))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (deciding(), "data-dependent expression"),
        (Net(lambda s, x: pooled(s.a(x)), a=nn.Conv2d(3, 8, 30)), "Kernel size: (30 x 30)"),
        (Net(lambda s, x: torch.linalg.svd(pooled(s.a(x)))[0], a=conv(3, 8)), "aten._linalg_svd"),
    ],
)
def test_what_torch_cannot_export_is_refused_in_one_line(
    model: Net, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    disabled = logging.root.manager.disable
    with pytest.raises(ModelError, match="torch cannot export the model") as caught:
        export_onnx(model, images())
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "torch.export" in caught.value.fix
    assert capfd.readouterr() == ("", ""), "the exporter printed beside the error"
    assert logging.root.manager.disable == disabled


def test_a_model_beyond_one_onnx_file_is_refused() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight = nn.Parameter(torch.zeros(1, 1).expand(2**15, 2**15))  # 4 GiB, none of it held
    with pytest.raises(ModelError, match=r"weights are 4\.0 GiB; one ONNX file holds at most 2"):
        export_onnx(model, torch.zeros(1, 3, 8, 8))
