"""Device and precision, and the processes that train together, by lightning-fabric."""

from __future__ import annotations

import logging
import socket
import warnings
from dataclasses import dataclass
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

from pipeline.errors import DeployError


@dataclass(frozen=True)
class Place:
    """Which of the processes of one machine this is, and the port where they meet."""

    rank: int
    of: int
    port: int

    @classmethod
    def first(cls, of: int) -> Place:
        """The leader's place, at a port that is free now."""
        with socket.socket() as probe:
            probe.bind((_HERE, 0))
            return cls(0, of, probe.getsockname()[1])


_HERE = "127.0.0.1"


class Company(ClusterEnvironment):
    """Processes of one machine that somebody else starts, each told its place."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return _HERE

    @property
    def main_port(self) -> int:
        return self._place.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._place.of

    def set_world_size(self, size: int) -> None:
        """It was told at the beginning."""

    def global_rank(self) -> int:
        return self._place.rank

    def set_global_rank(self, rank: int) -> None:
        """It was told at the beginning."""

    def local_rank(self) -> int:
        return self._place.rank

    def node_rank(self) -> int:
        return 0


def make_fabric(device: str, precision: str, place: Place | None = None) -> Fabric:
    """Device and precision by lightning-fabric. DeployError if that cannot be had.

    With a place the call returns when all processes have come; it is one of several then.
    """
    # it tells what was asked for, and with many dashes that it begins
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    several: dict[str, Any] = {"devices": 1}
    if place is not None:
        several = {"devices": place.of, "strategy": "ddp", "plugins": Company(place)}
    try:
        with warnings.catch_warnings():
            # fabric would replace the precision and only warn
            warnings.filterwarnings("error", message=".*is not supported on CPU")
            fabric = Fabric(accelerator=device, precision=precision, **several)  # type: ignore[arg-type]
    except (ValueError, RuntimeError, UserWarning) as error:
        raise DeployError(
            f"cannot train on {device!r} in precision {precision!r}: {error}",
            fix="use --device auto or cpu, --train-precision 32-true or bf16-mixed, "
            "and no more --devices than there are",
        ) from error
    if place is not None:
        fabric.launch()
    return fabric
