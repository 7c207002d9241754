"""`pipeline worker`: joins this device to a measuring fleet, until it is ended."""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

from calibration.fleet import ray_module, resource
from targets import load_target
from targets.base import TargetOptions


def start_command(target: str, address: str | None, port: int) -> list[str]:
    """The command that makes this machine a node of the fleet, or its first one."""
    place = ["--address", address] if address else ["--head", "--port", str(port)]
    dashboard = [] if address else ["--include-dashboard=false"]
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", *place, *dashboard),
        *("--block", "--disable-usage-stats", "--num-cpus", "1"),
        *("--resources", json.dumps({resource(target): 1})),
    ]


def join(target: str, address: str | None, port: int) -> NoReturn:
    """Become Ray's node process; TargetUnavailableError if the target cannot run here."""
    made = load_target(target, TargetOptions())
    made.required(made.is_available())
    ray_module()
    command = start_command(target, address, port)
    # no child: a signal to this process must end the node
    os.execv(command[0], command)
