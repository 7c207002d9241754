from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from targets import fingerprint, machine
from targets.fingerprint import Fingerprint, allowed_cpus, cpu_fingerprint

ONE = Fingerprint(
    target="ort-cpu",
    precision="fp32",
    device="GenuineIntel family 6",
    runtime="onnxruntime 1.31.1",
    driver="",
    batch=1,
    threads=2,
    affinity=2,
    settings=("optimization=all", "spinning=on"),
    isa=("avx2", "avx512f"),
    cgroup_quota=None,
    clocks="performance",
)


@pytest.fixture
def fresh_machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Forget what was read from this machine, before and after the test."""
    caches = (machine.cpu_fields, machine._cgroup_folders)
    for cached in caches:
        monkeypatch.setattr(machine, cached.__name__, cached.__wrapped__)
    return monkeypatch


def test_equal_fingerprints_differ_in_nothing() -> None:
    assert ONE.differences(dataclasses.replace(ONE)) == ()


def test_differences_name_each_field_with_both_values() -> None:
    other = dataclasses.replace(ONE, threads=4, cgroup_quota=1.5, isa=("avx2",))
    assert ONE.differences(other) == (
        "threads: 2 != 4",
        "isa: [avx2, avx512f] != [avx2]",
        "cgroup_quota: none != 1.5",
    )


def test_every_field_counts() -> None:
    for field in dataclasses.fields(Fingerprint):
        other = dataclasses.replace(ONE, **{field.name: "something else"})
        (difference,) = ONE.differences(other)
        assert difference.startswith(f"{field.name}: ")
        assert other.digest() != ONE.digest()


def test_json_round_trip() -> None:
    again = Fingerprint.from_json(json.loads(json.dumps(ONE.to_json())))
    assert again == ONE
    assert again.digest() == ONE.digest()
    assert hash(again) == hash(ONE)


def test_json_of_another_shape_is_refused_by_field() -> None:
    record = ONE.to_json()
    del record["isa"]
    record["colour"] = "red"
    with pytest.raises(ValueError, match="colour, isa"):
        Fingerprint.from_json(record)


def test_allowed_cpus_follow_the_affinity_mask() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert allowed_cpus() == (min(before),)
    finally:
        os.sched_setaffinity(0, before)
    assert set(allowed_cpus()) == before


def test_cpu_fields_are_read_once_and_bear_missing_fields(
    fresh_machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 2\nflags\t\t: sse avx512f avx2\n\n"
        "processor\t: 1\nvendor_id\t: Other\n"
    )
    fresh_machine.setattr(machine, "CPUINFO", cpuinfo)
    assert machine.cpu_device() == "AuthenticAMD model 2"
    assert machine.cpu_isa() == ("avx2", "avx512f")


def test_an_unreadable_machine_still_has_a_fingerprint(
    fresh_machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CPUINFO", "PROC_STAT", "PROC_CGROUP", "CGROUP_ROOT"):
        fresh_machine.setattr(machine, name, tmp_path / "absent")
    fresh_machine.setattr(machine, "CPUFREQ", str(tmp_path / "absent{}"))
    found = cpu_fingerprint("t", "fp32", runtime="r 1", batch=1, threads=1, settings=())
    assert (found.device, found.isa, found.clocks) == ("unknown CPU", (), "")
    assert found.cgroup_quota is None
    assert (machine.steal_ticks(), machine.throttled_us()) == (0, 0)


@pytest.mark.parametrize(
    ("membership", "files", "quota", "throttled"),
    [
        (
            "0::/job\n",
            {"job/cpu.max": "150000 100000\n", "job/cpu.stat": "throttled_usec 7\n"},
            1.5,
            7,
        ),
        ("0::/job\n", {"job/cpu.max": "max 100000\n", "job/cpu.stat": "usage_usec 7\n"}, None, 0),
        (
            "4:cpu,cpuacct:/host/job\n",
            {
                "cpu/cpu.cfs_quota_us": "200000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.stat": "nr_throttled 2\nthrottled_time 9000\n",
            },
            2.0,
            9,
        ),
        (
            "4:cpu:/\n",
            {
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.stat": "",
            },
            None,
            0,
        ),
        (
            "0::/outer/inner\n",
            {
                "outer/cpu.max": "50000 100000\n",
                "outer/cpu.stat": "",
                "outer/inner/cpu.max": "max 100000\n",
                "outer/inner/cpu.stat": "",
            },
            0.5,
            0,
        ),
    ],
    ids=["v2", "v2-unlimited", "v1-in-a-container", "v1-unlimited", "limit-on-a-parent"],
)
def test_cgroup_limits(
    fresh_machine: pytest.MonkeyPatch,
    tmp_path: Path,
    membership: str,
    files: dict[str, str],
    quota: float | None,
    throttled: int,
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "membership").write_text(membership)
    fresh_machine.setattr(machine, "PROC_CGROUP", tmp_path / "membership")
    fresh_machine.setattr(machine, "CGROUP_ROOT", tmp_path)
    assert machine.cgroup_quota() == quota
    assert machine.throttled_us() == throttled


def test_steal_is_the_eighth_counter_of_the_allowed_cpus(
    fresh_machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stat = tmp_path / "stat"
    lines = [f"cpu{cpu} 1 2 3 4 5 6 7 {10**cpu} 9 10" for cpu in range(4)]
    stat.write_text("\n".join(["cpu  1 2 3 4 5 6 7 88 9 10", *lines, "intr 1 2 3 4 5 6 7 8 9"]))
    fresh_machine.setattr(machine, "PROC_STAT", stat)
    fresh_machine.setattr(machine, "allowed_cpus", lambda: (1, 3))
    assert machine.steal_ticks() == 1010


def test_the_module_offers_what_it_lists() -> None:
    assert all(hasattr(fingerprint, name) for name in fingerprint.__all__)
