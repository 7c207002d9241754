"""W-Gates beside dense, uniform width and L1 norm at equal measured latency, on CIFAR-10.

All arms start from one dense network (the given weights, adapted to the JPEG images), train for
the same number of epochs on the same images in the same order, select on validation and report
test. At the end all engines are timed interleaved in the same fresh processes.

    python -m benchmarks.cifar10 --data DIR --weights FILE --out runs/cifar10

DIR holds train/<class>/*.jpg and test/<class>/*.jpg; FILE is the ResNet-20 checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.common import environment, pipeline, write_result
from targets.base import TargetOptions
from targets.blocks import measure_blocks

ARMS = ("wgates", "l1", "uniform")
SHARED = ("prepare", "trace", "calibrate")


def main() -> None:
    options = _arguments()
    shared = [
        *("--model", "wgates:resnet20a", "--data", f"imagefolder:{options.data}"),
        *("--weights", str(options.weights), "--train-limit", str(options.limit)),
        *("--dense-epochs", str(options.adapt_epochs), "--dense-lr", "0.02"),
        *("--seed", str(options.seed), "--train-batch", "128"),
        *("--train-precision", options.train_precision),
        *("--target", "ort-cpu", "--threads", "1", "--budget", options.budget),
        *("--gate-epochs", str(options.gate_epochs)),
        *("--finetune-epochs", str(options.finetune_epochs)),
    ]
    folders = {arm: options.out / arm for arm in ARMS}
    for arm, folder in folders.items():
        if arm != ARMS[0] and not folder.exists():
            folder.mkdir(parents=True)
            for stage in SHARED:
                shutil.copytree(folders[ARMS[0]] / stage, folder / stage)
        pipeline("run", "--out", str(folder), "--method", arm, *shared)
    dense = _dense_arm(options, folders["wgates"])
    write_result(options.result, _result(options, folders, dense))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--result", default="cifar10-resnet20.json")
    parser.add_argument("--budget", default="0.65x")
    parser.add_argument("--limit", type=int, default=25_000)
    parser.add_argument("--adapt-epochs", type=int, default=3)
    parser.add_argument("--gate-epochs", type=int, default=4)
    parser.add_argument("--finetune-epochs", type=int, default=6)
    parser.add_argument("--train-precision", default="bf16-mixed")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _dense_arm(options: argparse.Namespace, start: Path) -> Path:
    """The dense network, trained for as many more epochs as the pruned arms were."""
    folder: Path = options.out / "dense"
    epochs = options.gate_epochs + options.finetune_epochs
    pipeline(
        "prepare",
        str(folder),
        *("--model", "wgates:resnet20a", "--data", f"imagefolder:{options.data}"),
        *("--weights", str(start / "prepare" / "dense.safetensors")),
        *("--train-limit", str(options.limit), "--dense-epochs", str(epochs)),
        *("--dense-lr", "0.05", "--seed", str(options.seed), "--train-batch", "128"),
        *("--train-precision", options.train_precision),
    )
    return folder


def _result(options: argparse.Namespace, folders: dict[str, Path], dense: Path) -> dict[str, Any]:
    engines = {arm: folder / "build" / "engine.onnx" for arm, folder in folders.items()}
    blocks = measure_blocks(
        "ort-cpu",
        TargetOptions(threads=1),
        {"dense": folders["wgates"] / "build" / "dense.onnx", **engines},
        processes=12,
        seconds_per_block=0.3,
    )
    arms: dict[str, Any] = {
        "dense as given, adapted": _load(folders["wgates"], "prepare/prepare.json")["top1"],
        "dense, same training": {
            **_load(dense, "prepare/prepare.json")["top1"],
            "median_ms": blocks.median_ms("dense"),
            "ci95_ms": blocks.ci95_ms("dense"),
        },
    }
    for arm, folder in folders.items():
        certificate = _load(folder, "verify/certificate.json")
        prune, finetune = _load(folder, "prune/prune.json"), _load(folder, "finetune/finetune.json")
        ratio, interval = blocks.ratio(arm, "dense")
        arms[arm] = {
            "test": certificate["accuracy"]["engine"],
            "val": max(epoch["val_top1"] for epoch in finetune["history"]),
            "before finetuning": finetune["top1"]["pruned"],
            "ratio_to_dense": ratio,
            "ratio_ci95": interval,
            "median_ms": blocks.median_ms(arm),
            "ci95_ms": blocks.ci95_ms(arm),
            "timed_calls": len(blocks.pooled_ms(arm)),
            "verdict": certificate["verdict"],
            "params": certificate["params"]["pruned"],
            "macs": certificate["macs"]["pruned"],
            "rounds": prune["rounds"],
            "widths": prune["widths"],
            "history": [*prune["history"], *finetune["history"]],
        }
    protocol = {key: str(value) for key, value in vars(options).items() if key in PROTOCOL}
    return {"protocol": protocol, "environment": environment(), "arms": arms}


PROTOCOL = (
    *("budget", "limit", "adapt_epochs", "gate_epochs", "finetune_epochs"),
    *("train_precision", "seed"),
)


def _load(folder: Path, file: str) -> Any:
    return json.loads((folder / file).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
