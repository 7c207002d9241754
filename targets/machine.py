"""What Linux says about the CPU, its load and our share of it; what it hides is left out."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
PROC_STAT = Path("/proc/stat")
PROC_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")
CPUFREQ = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"

# instruction sets that decide which kernels a runtime picks, as the kernel spells them (x86, ARM)
ISA_FLAGS = frozenset(
    {
        "avx2",
        "fma",
        "avx_vnni",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "amx_fp16",
        "asimd",
        "asimddp",
        "asimdhp",
        "i8mm",
        "bf16",
        "sve",
        "sve2",
    }
)


def allowed_cpus() -> tuple[int, ...]:
    """CPUs that this process may run on, from its affinity mask; never the machine's core count."""
    return tuple(sorted(os.sched_getaffinity(0)))


@functools.cache
def cpu_fields() -> Mapping[str, str]:
    """Fields of the first processor in /proc/cpuinfo, such as "model name"; empty if unreadable."""
    first_processor = _read(CPUINFO).strip().split("\n\n")[0]
    pairs = (line.partition(":") for line in first_processor.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip()}


def cpu_device() -> str:
    """CPU vendor, family, model, stepping and name in one line, without the fields it lacks."""
    fields = cpu_fields()
    labelled = {
        "vendor_id": "",
        "CPU implementer": "implementer ",
        "cpu family": "family ",
        "model": "model ",
        "CPU part": "part ",
        "stepping": "stepping ",
        "model name": "",
    }
    words = (label + fields[key] for key, label in labelled.items() if fields.get(key))
    return " ".join(words) or "unknown CPU"


def cpu_isa() -> tuple[str, ...]:
    """Instruction sets of this CPU that matter to inference speed, sorted."""
    fields = cpu_fields()
    flags = fields.get("flags", fields.get("Features", ""))
    return tuple(sorted(ISA_FLAGS.intersection(flags.split())))


def cpu_governor() -> str:
    """Frequency governors of the allowed CPUs, such as "performance"; "" if none is readable."""
    names = {_read(Path(CPUFREQ.format(cpu))).strip() for cpu in allowed_cpus()}
    return ",".join(sorted(names - {""}))


def cgroup_quota() -> float | None:
    """CPUs that the control group grants in each period, such as 1.5; None if unlimited."""
    quotas = [quota for quota in map(_quota_of, _cgroup_folders()) if quota is not None]
    return min(quotas, default=None)


def steal_ticks() -> int:
    """Clock ticks since boot that a hypervisor took from our CPUs; 0 if unreadable."""
    ours = {f"cpu{cpu}" for cpu in allowed_cpus()}
    lines = (line.split() for line in _read(PROC_STAT).splitlines())
    counted = [words[8] for words in lines if len(words) > 8 and words[0] in ours]
    return sum(int(ticks) for ticks in counted if ticks.isdigit())


def throttled_us() -> int:
    """Microseconds that the control group's CPU quota held us back so far; 0 if unreadable."""
    # each group counts for itself, and any of them may hold us back
    return sum(_throttled_of(folder) for folder in _cgroup_folders())


@functools.cache
def _cgroup_folders() -> tuple[Path, ...]:
    """Folders that may hold our CPU limits: version 2 and version 1, our group and its parents."""
    folders: list[Path] = []
    for line in _read(PROC_CGROUP).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            folders += _with_parents(CGROUP_ROOT, group)
        elif "cpu" in controllers.split(","):
            folders += _with_parents(CGROUP_ROOT / "cpu", group)
    return tuple(dict.fromkeys(folder for folder in folders if (folder / "cpu.stat").exists()))


def _with_parents(root: Path, group: str) -> Iterator[Path]:
    # a container may show its group's path on the host without that path being mounted inside,
    # and a limit may be set on any parent
    folder = root / group.lstrip("/")
    while folder != root:
        yield folder
        folder = folder.parent
    yield root


def _quota_of(folder: Path) -> float | None:
    """CPUs granted by one control group folder; None if it sets no limit."""
    words = _read(folder / "cpu.max").split()
    if not words:
        words = [
            _read(folder / "cpu.cfs_quota_us").strip(),
            _read(folder / "cpu.cfs_period_us").strip(),
        ]
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None  # "max" in version 2 and "-1" in version 1 mean unlimited
    quota_us, period_us = map(int, words)
    return round(quota_us / period_us, 3) if period_us else None


def _throttled_of(folder: Path) -> int:
    pairs = (line.split() for line in _read(folder / "cpu.stat").splitlines())
    counters = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    if "throttled_usec" in counters:
        return counters["throttled_usec"]
    return counters.get("throttled_time", 0) // 1000  # version 1 counts nanoseconds


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
