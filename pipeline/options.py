"""Every option of every stage: flag = TOML key = field, and the only home of defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.bounds import Share, complaint, option
from pipeline.budget import Objective, Percentile

__all__ = [
    "BuildOptions",
    "CalibrateOptions",
    "ExportOptions",
    "FinetuneOptions",
    "PackageOptions",
    "PrepareOptions",
    "PruneOptions",
    "Share",
    "TraceOptions",
    "VerifyOptions",
    "complaint",
    "option",
]


@dataclass(frozen=True)
class PrepareOptions:
    """Model, weights and data; trains the dense network when no weights are given."""

    model: str = option(
        "wgates:resnet20", "wgates:NAME, torchvision:NAME, timm:NAME, file.py:factory"
    )
    weights: Path | None = option(None, "dense weights: .safetensors, or a state dict")
    data: str = option(
        "digits", "digits, imagefolder:DIR, webdataset:SHARDS, cifar10:DIR, file.py:factory"
    )
    image_size: int | None = option(None, "resize images to this many pixels square", least=1)
    train_limit: int | None = option(None, "use only this many training images", least=1)
    dense_epochs: int | None = option(
        None, "epochs of dense training (16 without weights, else 0)", least=0
    )
    dense_lr: float = option(0.1, "peak learning rate of dense training", least=0)
    train_batch: int = option(64, "images per training step, in every training stage", least=2)
    micro_batch: int | None = option(
        None, "most images at once on a device, gradients added up (unset: all)", least=2
    )
    weight_decay: float = option(5e-4, "weight decay, in every training stage", least=0)
    warmup: Share = option(
        Share(0.1),
        "share of the steps in which the learning rate rises; none where fine-tuning goes on "
        "with what prune trained",
        least=0,
        below=1,
    )
    label_smoothing: float = option(0.0, "share of a label spread over all", least=0, below=1)
    mixup: float = option(0.0, "alpha of mixup; 0: none", least=0)
    cutmix: float = option(0.0, "alpha of cutmix; 0: none", least=0)
    rand_augment: int = option(0, "magnitude of RandAugment; 0: none", least=0, most=30)
    ema: float = option(
        0.0,
        "decay of averaged weights, in dense training and fine-tuning; 0: none",
        least=0,
        below=1,
    )
    channels_last: bool | None = option(
        None,
        "train with channels in the innermost dimension, if the network can be computed so "
        "(unset: where that is faster, on a CPU and in 16 bits)",
    )
    checkpoint_minutes: float = option(
        5.0, "save a training inside its epochs this often", least=0, settles=False
    )
    logger: Literal["csv", "tensorboard", "mlflow", "none"] = option(
        "csv", "where the course of a training is written, beside its stage", settles=False
    )
    loader_workers: int | None = option(
        None, "processes that decode images (unset: one a processor)", least=0, settles=False
    )
    device: str = option("auto", "training device, as lightning-fabric names it: auto, cpu, cuda")
    devices: int = option(1, "devices that train together, in every training", least=1)
    train_precision: str = option("32-true", "training precision, as lightning-fabric names it")
    seed: int = option(0, "seed of subset, order, initialisation and sampling", least=0, most=2**32)


@dataclass(frozen=True)
class TraceOptions:
    """Channel groups and the dense skeleton."""

    batch: int = option(1, "images per call of the engine", least=1)
    residual: Literal["tied", "inner"] = option("tied", "narrow residual streams too, or not")
    remove_blocks: bool = option(
        False, "let residual branches go as a whole where all channels inside of them do"
    )


@dataclass(frozen=True)
class CalibrateOptions:
    """Ground-truth latencies of sampled widths, and the LPNet fitted on them."""

    target: str = option("ort-cpu", "runtime and precision; see: pipeline targets")
    threads: int = option(
        1, "threads of the engine; 0: as many as the affinity mask allows", least=0
    )
    spinning: bool = option(True, "let idle threads of the engine wait busily (ONNX Runtime)")
    device_time: bool = option(
        False,
        "latency is the GPU's own time, or what the caller waits, copies included",
        negative="end-to-end",
    )
    cuda_graph: bool = option(False, "replay the network as one captured CUDA graph")
    quantizer: str = option(
        "auto", "who makes the int8 form; auto: whichever of the target's measures better"
    )
    compute_capabilities: str | None = option(
        None, "GPUs that TensorRT-RTX builds for, such as sm86,sm89 (unset: its default)"
    )
    range_images: int = option(128, "training images that int8 takes its ranges from", least=1)
    precision_loss: Share = option(
        Share(0.01), "most top-1 that fp16 or int8 may lose on validation", least=0, below=1
    )
    samples: int = option(300, "most width vectors to measure", least=1)
    lpnet_error: Share = option(
        Share(0.02), "stop measuring when the LPNet's mean held-out error is this small", above=0
    )
    time: float | None = option(None, "stop measuring after this many minutes", above=0)
    cliffs: bool = option(True, "narrow the costliest groups one at a time to find width cliffs")
    precision: Share = option(
        Share(0.01), "stop timing a candidate when half its 95 % interval is this narrow", above=0
    )
    prior: Path | None = option(
        None, "lpnet.json of the same network on another device or runtime, to begin from"
    )
    watchdog: float = option(
        10.0,
        "give a candidate, a build or an engine's answer up that takes this many minutes",
        above=0,
        settles=False,
    )
    database: Path | None = option(
        None, "SQLite file that several runs keep measurements in, too", settles=False
    )
    fleet: str | None = option(
        None,
        "measure on the devices of the fleet at HOST:PORT; see: pipeline worker",
        settles=False,
    )


@dataclass(frozen=True)
class PruneOptions:
    """Which channels stay, so that the predicted and the measured latency fit the budget."""

    objective: Objective = option(
        "latency", "what the budget bounds: latency on the target, multiply-adds, or parameters"
    )
    budget: str = option(
        "0.6x",
        "0.6x of the dense network; or 4.0ms of latency, 1.2G multiply-adds, 3.4M parameters",
    )
    percentile: Percentile = option("p50", "which percentile of the latency the budget bounds")
    method: Literal["wgates", "l1", "group-norm", "bn-scale", "uniform", "random"] = option(
        "wgates", "W-Gates, or a baseline that the dense weights decide"
    )
    plan: Path | None = option(
        None, "a plan.json of this network: keep its channels instead of choosing any"
    )
    budget_mode: Literal["projection", "bound", "penalty"] = option(
        "projection",
        "gates are held on plans that fit the budget, or a price on the cost makes them hit it, or "
        "they weigh alpha * log(1 + cost / dense cost) against the task, where the budget only "
        "bounds the final selection",
    )
    worth: Literal["count", "loss"] = option(
        "loss",
        "what a group's channels are worth beside those of others: their number, or the training "
        "loss without them",
    )
    worth_images: int = option(256, "training images on which that loss is measured", least=2)
    worth_plans: int = option(
        32, "whole plans whose loss is asked, since single losses do not add up; 1: none", least=1
    )
    worth_steps: int = option(
        80,
        "of these the best are trained for so many steps each, then one is chosen; 0: none",
        least=0,
    )
    alpha: float = option(1.0, "weight of the cost in --budget-mode penalty", least=0)
    min_width: Share = option(
        Share(0.0),
        "least share of a group's channels to keep (never below the floor)",
        least=0,
        most=1,
    )
    gate_epochs: int = option(12, "epochs of gated training", least=0)
    live_share: Share = option(
        Share(2 / 3),
        "share of the gated epochs in which gates move; then masks are fixed",
        above=0,
        most=1,
    )
    ramp_share: Share = option(
        Share(0.6),
        "share of these over which the aim falls from dense to the budget; 0: it is there at once",
        least=0,
        most=1,
    )
    gate_lr: float = option(1.0, "speed of the gates, whatever the training's length", least=0)
    weight_lr: float = option(
        0.05,
        "learning rate of the weights during gated training; it holds, for fine-tuning to go on",
        least=0,
    )
    dual_lr: float = option(0.8, "speed of dual ascent in --budget-mode bound, likewise", least=0)
    surrogate: Literal["poly", "tanh", "ste"] = option("poly", "backward slope of the binary gate")
    gate_start: Literal["signal", "norm", "shuffled", "drawn"] = option(
        "signal",
        "first scores: in the order of what channels pass on (batch norm's scale times the weights "
        "that read them), of filter norms, in any order, or normally distributed",
    )
    detach_gate_input: bool = option(
        True, "keep gate gradients away from the weights, or let gates pull at them as in the paper"
    )
    gate_distill: float = option(
        0.0, "weight of distillation during gated training, 0 to 1", least=0, most=1
    )
    snap_gates: bool = option(
        True,
        "fill groups up to the target's measured fast widths while gates learn under a price; "
        "plans are filled up in any case",
    )
    margin: float = option(
        0.015, "aim this share below the budget (of latency; a count is exact)", least=0, below=1
    )
    rounds: int = option(
        3, "solve, build and measure at most this often (for latency; a count is exact)", least=1
    )


@dataclass(frozen=True)
class FinetuneOptions:
    """Accuracy recovered on the physically smaller network."""

    finetune_epochs: int = option(30, "epochs of fine-tuning", least=0)
    finetune_lr: float = option(0.05, "peak learning rate of fine-tuning", least=0)
    distill: float = option(
        0.5, "weight of distillation from the dense network, 0 to 1", least=0, most=1
    )


@dataclass(frozen=True)
class ExportOptions:
    """The compact model as one static ONNX graph."""

    parity_tolerance: float = option(
        1e-4, "largest |torch - ONNX| over the largest |logit|", least=0
    )


@dataclass(frozen=True)
class BuildOptions:
    """The engine."""

    builds: int = option(3, "how often to build, to see the spread between builds", least=1)


@dataclass(frozen=True)
class VerifyOptions:
    """Parity, accuracy and latency of the built engine."""

    processes: int = option(
        24, "most fresh processes to measure in; fewer where the verdict is clear", least=1
    )
    block_seconds: float = option(0.3, "seconds of one timed block", above=0)
    cold_starts: int = option(
        3, "processes that time an engine's cold start and memory; 0: none", least=0
    )
    counterfactual: bool = option(
        True, "also time the dense network at the runtime's other precisions"
    )
    engine_tolerance: float | None = option(
        None,
        "largest |torch - engine| over the largest |logit| "
        "(1e-3 in fp32, 2e-2 in fp16; int8 is held to --precision-loss)",
        least=0,
    )


@dataclass(frozen=True)
class PackageOptions:
    """What a serving team gets."""

    serve_name: str | None = option(None, "name in the Triton repository (default: the run's)")
    serve_instances: int = option(
        1, "engines that Triton runs side by side, on each GPU where it has any", least=1
    )
