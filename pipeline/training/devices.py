"""Device and precision, by lightning-fabric."""

from __future__ import annotations

import warnings

from lightning_fabric import Fabric

from pipeline.errors import DeployError


def make_fabric(device: str, precision: str) -> Fabric:
    """Device and precision by lightning-fabric; one device. DeployError if that cannot be had."""
    try:
        with warnings.catch_warnings():
            # fabric would replace the precision and only warn
            warnings.filterwarnings("error", message=".*is not supported on CPU")
            return Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]
    except (ValueError, RuntimeError, UserWarning) as error:
        raise DeployError(
            f"cannot train on {device!r} in precision {precision!r}: {error}",
            fix="use --device auto or cpu, and --train-precision 32-true or bf16-mixed",
        ) from error
