"""Which quantiser OpenVINO's int8 engines are better made by: ONNX Runtime's Q/DQ or NNCF.

python -m benchmarks.openvino_int8  (about 2 minutes on one core)
"""

from __future__ import annotations

import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import environment, write_result
from pipeline.export import export_onnx
from pipeline.models.zoo import create_model, input_size_of
from targets import load_target
from targets.base import BuildRecord, Engine, Images, Target, TargetOptions
from targets.precision.reference import relative_error
from targets.timing import compare

CLASSES = 10
NETWORKS = ("wgates:resnet20", "torchvision:resnet18", "torchvision:mobilenet_v2")
RANGE_IMAGES, JUDGED_IMAGES = 32, 32
QUANTIZERS = ("qdq", "nncf")
TIE = 0.03  # latencies and errors closer than this decide nothing


def main() -> None:
    torch.set_num_threads(1)
    studies = [study(name) for name in NETWORKS]
    faster = {
        found["network"]: found["nncf_over_qdq"]["ratio"] - 1
        for found in studies
        if abs(found["nncf_over_qdq"]["ratio"] - 1) > TIE
    }
    print("nncf over qdq, where they differ:", faster)
    document = {"environment": with_versions(), "tie": TIE, "networks": studies}
    write_result("openvino-int8.json", document)


def with_versions() -> dict[str, Any]:
    found = environment("openvino-cpu-int8")
    found["packages"] |= {name: version(name) for name in ("openvino", "nncf")}
    return found


def study(name: str) -> dict[str, Any]:
    """Both quantisers on one network: latencies interleaved, and the error of the logits."""
    size = input_size_of(name) or 224
    onnx = network(name, size)
    ranges, judged = smooth_images(RANGE_IMAGES, size, 1), smooth_images(JUDGED_IMAGES, size, 2)
    with tempfile.TemporaryDirectory() as folder:
        plain = Built("", Path(folder), onnx, ranges)
        quantized = {name: Built(name, Path(folder), onnx, ranges) for name in QUANTIZERS}
        engines = {name: built.engine for name, built in quantized.items()}
        expected = plain.engine.infer(judged)
        found = {
            "network": name,
            "pixels": size,
            "fp32_load_over_build": round(plain.load_s / plain.build_s, 3),
            "nncf_over_qdq": ratio(engines["nncf"], engines["qdq"]),
            **{name: built.judged(plain, judged, expected) for name, built in quantized.items()},
        }
        for built in (plain, *quantized.values()):
            built.engine.close()
    print(found, flush=True)
    return found


class Built:
    """An engine with how long it took to build and to load."""

    def __init__(self, quantizer: str, folder: Path, onnx: bytes, images: Images) -> None:
        options = TargetOptions(batch=1, threads=1, quantizer=quantizer)
        name = "openvino-cpu-int8" if quantizer else "openvino-cpu"
        self.target: Target = load_target(name, options)
        started = time.perf_counter()
        self.record: BuildRecord = self.target.build(
            onnx, folder / f"{quantizer or 'fp32'}.ovblob", [images]
        )
        built = time.perf_counter()
        self.engine: Engine = self.target.load(self.record.engine)
        self.build_s, self.load_s = built - started, time.perf_counter() - built

    def judged(self, plain: Built, images: Images, expected: Any) -> dict[str, Any]:
        logits = self.engine.infer(images)
        return {
            "over_fp32": ratio(self.engine, plain.engine),
            "logits_error": round(relative_error(logits, expected), 4),
            "rms_error": round(float(np.sqrt(((logits - expected) ** 2).mean())), 4),
            "rms_logit": round(float(np.sqrt((expected**2).mean())), 4),
            "same_top1": round(float((logits.argmax(1) == expected.argmax(1)).mean()), 4),
            "build_s": round(self.build_s, 2),
            "load_s": round(self.load_s, 3),
            "facts": dict(self.record.facts),
        }


def ratio(candidate: Engine, anchor: Engine) -> dict[str, Any]:
    found = compare(candidate, anchor, limit_s=8.0)
    low, high = found.ratio_ci95
    return {
        "ratio": round(found.ratio, 4),
        "ci95": [round(low, 4), round(high, 4)],
        "doubts": list(found.doubts()),
    }


def network(name: str, size: int) -> bytes:
    """An untrained network whose batch norm statistics are those of images."""
    torch.manual_seed(0)
    model = create_model(name, CLASSES).train()
    with torch.no_grad():
        for seed in range(3, 13):
            model(torch.from_numpy(smooth_images(8, size, seed)))
    return export_onnx(model.eval(), torch.zeros(1, 3, size, size))


def smooth_images(n: int, size: int, seed: int) -> Images:
    """(n, 3, size, size) random images whose neighbouring pixels resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, size // 8, size // 8, generator=generator)
    fine = torch.randn(n, 3, size, size, generator=generator)
    grown = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    images: Images = (grown + 0.2 * fine).numpy()
    return images


if __name__ == "__main__":
    main()
