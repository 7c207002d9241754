"""The fingerprint of a target that runs on the first GPU."""

from __future__ import annotations

from targets.base import TargetOptions
from targets.fingerprint import Fingerprint, allowed_cpus
from targets.gpu.cuda import device
from targets.gpu.nvml import GpuMonitor
from targets.machine import cgroup_quota


def gpu_fingerprint(
    target: str,
    precision: str,
    *,
    runtime: str,
    options: TargetOptions,
    settings: tuple[str, ...],
) -> Fingerprint:
    """Device, driver and clocks beside what was chosen. The host counts too: it makes the calls."""
    gpu = device()
    monitor = GpuMonitor.open(gpu.pci_bus_id)
    try:
        driver, clocks = monitor.driver(), monitor.clocks()
    finally:
        monitor.close()
    interval = "device" if options.device_time else "host end-to-end"
    return Fingerprint(
        target=target,
        precision=precision,
        device=f"{gpu.name}, {gpu.memory_mb} MiB",
        runtime=runtime,
        driver=driver,
        batch=options.batch,
        threads=options.thread_count,
        affinity=len(allowed_cpus()),
        settings=(
            *settings,
            "tf32=off",
            f"cuda_graph={'on' if options.cuda_graph else 'off'}",
            f"interval={interval}",
        ),
        isa=(gpu.compute_capability,),
        cgroup_quota=cgroup_quota(),
        clocks=clocks,
    )
