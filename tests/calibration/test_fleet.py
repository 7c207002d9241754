"""The fleet on a real Ray cluster of several nodes, whose devices are asleep, not busy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from calibration.database import LatencyDatabase
from calibration.errors import FleetError
from calibration.fleet import Fleet, measure_on_fleet, resource
from calibration.jobs import Answer, Job, Setup
from calibration.rows import Row
from calibration.sampling import first_widths
from calibration.widths import WidthVector
from targets.errors import FingerprintError

from .chain import BATCH
from .test_database import FINGERPRINT, comparison
from .test_jobs import OPTIONS, SKELETON, law

pytest.importorskip("ray", reason="the fleet was NOT tested: pip install 'wgates[fleet]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")
ray_worker = pytest.importorskip("ray._private.worker")

SLEEPING = Path(__file__).parents[1] / "third_party" / "sleeping"
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
WANTED = first_widths(SKELETON.groups, 1, 60, seed=3)


@pytest.fixture(scope="module")
def setup() -> Setup:
    sys.path.insert(0, str(SLEEPING))
    from sleeping_target import SleepingTarget

    sys.path.remove(str(SLEEPING))
    return Setup(SKELETON, "sleeping", OPTIONS, SleepingTarget(OPTIONS).fingerprint())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without a device, and one device; its processes find the sleeping target."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SLEEPING), before]))
    soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = NODE | {"num_cpus": 0, "include_dashboard": False, "_system_config": soon}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    add_devices(made, 1)
    yield made
    made.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def add_devices(cluster: Any, count: int) -> list[Any]:
    offered = {resource("sleeping"): 1}
    added = [cluster.add_node(**NODE, resources=offered, wait=False) for _ in range(count)]
    cluster.wait_for_nodes()
    return added


@pytest.fixture
def database(tmp_path: Path) -> Iterator[LatencyDatabase]:
    with LatencyDatabase(tmp_path / "latency.sqlite") as opened:
        yield opened


def timed(fleet: Fleet, database: LatencyDatabase, wanted: tuple[WidthVector, ...]) -> float:
    """Seconds a network, once every device has its anchor."""
    started = time.perf_counter()
    measure_on_fleet(fleet, database, wanted)
    return (time.perf_counter() - started) / len(wanted)


def check_rows(database: LatencyDatabase, wanted: tuple[WidthVector, ...]) -> None:
    rows = database.rows(SKELETON.sha256)
    assert sorted(row.widths.kept for row in rows) == sorted(widths.kept for widths in wanted)
    for row in rows:
        assert row.ratio == pytest.approx(law(row.widths.kept), rel=1e-3)


def test_time_falls_with_devices_and_nothing_is_measured_twice(
    cluster: Any, setup: Setup, database: LatencyDatabase
) -> None:
    with Fleet(cluster.address, setup) as fleet:
        measure_on_fleet(fleet, database, WANTED[:1])
        alone = timed(fleet, database, WANTED[1:6])
        add_devices(cluster, 2)
        measure_on_fleet(fleet, database, WANTED[6:12])
        together = timed(fleet, database, WANTED[12:24])
        told: list[tuple[int, int]] = []
        measure_on_fleet(
            fleet, database, WANTED[:26], on_done=lambda done, total: told.append((done, total))
        )
        records = fleet.workers.values()
        assert sum(record.jobs for record in records) == 26
        assert len(records) == 3
        assert not any(record.drifted for record in records)
    assert together < 0.6 * alone
    assert told == [(24, 26), (25, 26), (26, 26)]
    check_rows(database, WANTED[:26])


def test_a_killed_worker_and_a_lost_node_lose_and_double_nothing(
    cluster: Any, setup: Setup, database: LatencyDatabase
) -> None:
    killed: list[int] = []

    def kill(done: int, _: int) -> None:
        if done == 5:
            killed.append(kill_a_busy_worker(cluster))
        if done == 12:
            ours = ray_worker.global_worker.node._raylet_socket_name  # must live: we are at it
            node = next(n for n in cluster.worker_nodes if n._raylet_socket_name != ours)
            killed.append(node.all_processes["raylet"][0].process.pid)
            Thread(target=cluster.remove_node, args=(node, False)).start()

    with Fleet(cluster.address, setup) as fleet:
        measure_on_fleet(fleet, database, WANTED[:24], on_done=kill)
        assert sum(record.jobs for record in fleet.workers.values()) == 24
    assert len(killed) == 2
    check_rows(database, WANTED[:24])


def test_a_candidate_that_hangs_is_marked_and_not_tried_again(
    cluster: Any, setup: Setup, database: LatencyDatabase
) -> None:
    told: list[tuple[int, int]] = []
    with Fleet(cluster.address, setup, limit_s=0.01) as fleet:
        for _ in range(2):
            measure_on_fleet(
                fleet, database, WANTED[:1], on_done=lambda done, total: told.append((done, total))
            )
    assert told == [(1, 1), (1, 1)]
    [(widths, reason)] = database.lost(SKELETON.sha256, setup.fingerprint).items()
    assert widths == WANTED[0]
    assert "took each longer than" in reason
    assert database.rows(SKELETON.sha256) == ()


def kill_a_busy_worker(cluster: Any) -> int:
    """SIGKILL for one of this cluster's processes that is at a job; its pid."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes}
    while True:
        listed = subprocess.run(
            ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        ).stdout
        for line in listed.splitlines():
            pid, parent, command = line.split(None, 2)
            if int(parent) in raylets and "ray::_work" in command:
                os.kill(int(pid), signal.SIGKILL)
                return int(pid)


def test_another_device_is_refused_by_field(
    cluster: Any, setup: Setup, database: LatencyDatabase
) -> None:
    other = replace(setup, fingerprint=replace(setup.fingerprint, driver="7"))
    with (
        Fleet(cluster.address, other) as fleet,
        pytest.raises(FingerprintError, match="is another device: driver: 7 != none"),
    ):
        measure_on_fleet(fleet, database, WANTED[:2])
    assert database.rows(SKELETON.sha256) == ()


def test_a_target_that_nobody_offers_is_told_at_once(cluster: Any, setup: Setup) -> None:
    with (
        pytest.raises(
            FleetError, match="offers target:trt-fp16; there is: target:sleeping"
        ) as error,
        Fleet(cluster.address, replace(setup, target="trt-fp16")),
    ):
        pass
    assert "pipeline worker --target trt-fp16 --address" in error.value.fix


def test_a_worker_joins_by_the_command_line(
    cluster: Any, setup: Setup, database: LatencyDatabase
) -> None:
    command = [str(Path(sys.executable).with_name("pipeline")), "worker", "--target", "fake"]
    fake = replace(setup, target="fake", fingerprint=replace(setup.fingerprint, target="fake"))
    with subprocess.Popen(
        [*command, "--address", cluster.address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as worker:
        try:
            wait_for(cluster, resource("fake"))
            with Fleet(cluster.address, fake) as fleet:
                measure_on_fleet(fleet, database, WANTED[:3])
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.communicate(timeout=30)
    check_rows(database, WANTED[:3])


def wait_for(cluster: Any, name: str) -> None:
    import ray

    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        deadline = time.monotonic() + 40
        while name not in ray.cluster_resources():
            assert time.monotonic() < deadline, f"no {name} in {ray.cluster_resources()}"
            time.sleep(0.2)
    finally:
        ray.shutdown()


# without a cluster ------------------------------------------------------------------------------


def answer_of(anchor_factor: float) -> Answer:
    made = comparison(0.5)
    anchor = replace(
        made.anchor, wall_ns=(made.anchor.wall_ns * anchor_factor).astype(made.anchor.wall_ns.dtype)
    )
    row = Row.of(SKELETON.sha256, WANTED_SETUP.fingerprint, WANTED[0], replace(made, anchor=anchor))
    return Answer(row, seconds=1.0)


WANTED_SETUP = Setup(SKELETON, "fake", OPTIONS, replace(FINGERPRINT, batch=BATCH))


def test_a_device_whose_anchor_drifts_is_told_and_doubted() -> None:
    fleet = Fleet("nowhere", WANTED_SETUP)
    plain = [fleet.judged("a", answer_of(factor)) for factor in (1.0, 1.05, 0.95)]
    drifted = fleet.judged("a", answer_of(1.2))
    other = fleet.judged("b", answer_of(1.2))  # slower all along
    assert not any("drifted" in doubt for row in (*plain, other) for doubt in row.doubts)
    assert drifted.doubts[-1] == "worker a: its anchor drifted by 20% against its first"
    assert str(fleet.workers["a"]).startswith("worker a: 4 networks in 4 s; its anchor drifted")
    assert fleet.workers["a"].drifted
    assert not fleet.workers["b"].drifted


def test_a_failure_of_a_device_is_told_with_its_fix() -> None:
    fleet = Fleet("nowhere", WANTED_SETUP)
    with pytest.raises(FleetError, match="worker a: no luck") as caught:
        fleet.judged("a", Answer(failure=("no luck", "try again")))
    assert caught.value.fix == "try again"


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FleetError) as caught:
        Fleet("nowhere", WANTED_SETUP)
    assert caught.value.fix == "pip install 'wgates[fleet]'"


def test_a_job_is_not_taken_for_another() -> None:
    made = Job(WANTED_SETUP.digest, WANTED[0], 0.01, "0.1.0")
    assert made.digest != replace(made, precision=0.02).digest
