"""What int8 gains and costs in ONNX Runtime on the CPU: both Q/DQ forms, three ways to take ranges.

python -m benchmarks.int8  (about 3 minutes on one core)
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from benchmarks.common import environment, write_result
from benchmarks.openvino_int8 import network, ratio, smooth_images
from pipeline.export import export_onnx
from pipeline.models.zoo import create_model
from targets.base import Engine, Images, TargetOptions
from targets.ort.cpu import INTEGER_KERNELS, OrtCpu
from targets.precision.half import to_fp16
from targets.precision.qdq import QdqForm, Ranges, calibrate_ranges, to_qdq
from targets.precision.reference import Runner, in_batches, parsed, relative_error

OPTIONS = TargetOptions(batch=1, threads=1)
RANGE_IMAGES, JUDGED_IMAGES = 32, 64
EPOCHS = 3  # of ResNet-20 on the digits: enough for activations and margins of a real network
FORMS = (QdqForm.ASYMMETRIC, QdqForm.SYMMETRIC)
METHODS = {
    "entropy": (CalibrationMethod.Entropy, {}),
    "percentile 99.99": (CalibrationMethod.Percentile, {"percentile": 99.99}),
    "percentile 99.9": (CalibrationMethod.Percentile, {"percentile": 99.9}),
}


def main() -> None:
    torch.set_num_threads(1)
    studies = [study("wgates:resnet20, digits", *digits_network())]
    for name in ("torchvision:resnet18", "torchvision:mobilenet_v2"):
        images = [smooth_images(n, 224, n) for n in (RANGE_IMAGES, JUDGED_IMAGES)]
        studies.append(study(name, network(name, 224), *images))
    document = {"environment": environment("ort-cpu-int8"), "networks": studies}
    write_result("int8.json", document)


def study(name: str, model: bytes, ranged: Images, judged: Images) -> dict[str, Any]:
    """Latency over fp32 and error of the logits, for each form and way to take ranges."""
    started = time.perf_counter()
    minmax = calibrate_ranges(model, [ranged])
    ranges = {"minmax": (minmax, time.perf_counter() - started)} | {
        method: others_ranges(model, ranged, method, minmax) for method in METHODS
    }
    expected = Runner(parsed(model)).logits(judged)
    found = {
        "network": name,
        "pixels": judged.shape[-1],
        "latency_over_fp32": latencies(model, minmax),
        "calibration_s": {method: round(seconds, 3) for method, (_, seconds) in ranges.items()},
        "errors": {
            form.name.lower(): {
                method: errors(to_qdq(model, taken, form).onnx, judged, expected)
                for method, (taken, _) in ranges.items()
            }
            for form in FORMS
        },
        "fp16_error": to_fp16(model, judged[:8]).error,
    }
    print(found, flush=True)
    return found


def errors(quantized: bytes, images: Images, expected: Any) -> dict[str, float]:
    logits = Runner(onnx.load_from_string(quantized)).logits(images)
    rms = np.sqrt(((logits - expected) ** 2).mean()) / np.sqrt((expected**2).mean())
    return {
        "largest": round(relative_error(logits, expected), 4),
        "rms": round(float(rms), 4),
        "same_top1": round(float((logits.argmax(1) == expected.argmax(1)).mean()), 4),
    }


def latencies(model: bytes, ranges: Ranges) -> dict[str, Any]:
    # ort-cpu builds the Q/DQ graphs too: ort-cpu-int8 would refuse one that stays in fp32
    target = OrtCpu(OPTIONS)
    graphs = {form.name.lower(): to_qdq(model, ranges, form).onnx for form in FORMS}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        engines: dict[str, Engine] = {}
        operators: dict[str, Counter[str]] = {}
        for name, graph in {"fp32": model, **graphs}.items():
            built = target.build(graph, Path(folder) / f"{name}.onnx").engine
            engines[name] = stack.enter_context(target.load(built))
            operators[name] = Counter(node.op_type for node in onnx.load(built).graph.node)
        return {
            name: {
                **ratio(engines[name], engines["fp32"]),
                "int8_kernels": {k: operators[name][k] for k in INTEGER_KERNELS},
                "fp32_convolutions": operators[name]["Conv"] + operators[name]["FusedConv"],
            }
            for name in graphs
        }


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """Images as ONNX Runtime's calibrators want them."""

    def __init__(self, runner: Runner, images: Images) -> None:
        self._name = runner.signature.input_name
        self._batches: Iterator[Images] = in_batches(images, runner.signature)

    def get_next(self) -> dict[str, Images] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def others_ranges(
    model: bytes, images: Images, method: str, minmax: Ranges
) -> tuple[Ranges, float]:
    """Ranges by a calibrator of ONNX Runtime and its seconds; it works on files, and prints."""
    started = time.perf_counter()
    kind, options = METHODS[method]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        source = Path(folder) / "model.onnx"
        source.write_bytes(model)
        calibrator = create_calibrator(
            source,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=kind,
            extra_options=options,
        )
        calibrator.collect_data(Batches(Runner(parsed(model)), images))
        found = calibrator.compute_data().items()
    limits = {name: tuple(float(np.squeeze(v)) for v in data.range_value) for name, data in found}
    joined = {**minmax.limits, **limits}  # what the calibrator leaves out, such as int tensors
    return Ranges(joined, len(images), method), time.perf_counter() - started


def digits_network() -> tuple[bytes, Images, Images]:
    """ResNet-20 trained on scikit-learn's digits at 32 x 32; its range and judged images."""
    torch.manual_seed(0)
    data = load_digits()
    grown = np.kron(data.images / 16.0, np.ones((1, 4, 4)))
    normal = ((grown - grown.mean()) / grown.std()).astype(np.float32)
    images, labels = np.repeat(normal[:, None], 3, axis=1), torch.from_numpy(data.target)
    order = np.random.default_rng(0).permutation(len(images))
    train, held_out = order[: -2 * JUDGED_IMAGES], order[-2 * JUDGED_IMAGES :]
    model = create_model("wgates:resnet20", 10).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(EPOCHS * len(train) // 64):
        chosen = np.random.default_rng(step).choice(train, 64, replace=False)
        optimizer.zero_grad()
        cross_entropy(model(torch.from_numpy(images[chosen])), labels[chosen]).backward()
        optimizer.step()
    exported = export_onnx(model.eval(), torch.zeros(1, 3, 32, 32))
    return exported, images[train[:RANGE_IMAGES]], images[held_out]


if __name__ == "__main__":
    main()
