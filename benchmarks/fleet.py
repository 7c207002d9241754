"""How the throughput of a measuring fleet grows with its devices, on one machine.

The devices are simulated: each is a place in a local Ray cluster whose target sleeps as long as
its builds and calls would take. Only slicing, Ray and the database compete for the machine's cores.

python -m benchmarks.fleet          # 1, 4, 16 and 64 devices
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import environment, write_result
from calibration.database import LatencyDatabase
from calibration.fleet import Fleet, measure_on_fleet, resource
from calibration.jobs import Setup
from calibration.sampling import first_widths
from targets import load_target
from targets.base import TargetOptions

DEVICES = (1, 4, 16, 64)
JOBS_A_DEVICE = {1: 12, 4: 10, 16: 10, 64: 8}
BUILD_S = 2.0  # of a simulated engine
PLACES_A_NODE = 16
BATCH = 2
TESTS = Path(__file__).parents[1] / "tests"
SLEEPING = TESTS / "third_party" / "sleeping"


def main() -> None:
    os.environ["SLEEPING_BUILD_S"] = str(BUILD_S)
    os.environ["PYTHONPATH"] = f"{SLEEPING}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    sys.path += [str(SLEEPING), str(TESTS / "calibration")]
    found = [_throughput(count) for count in DEVICES]
    single = found[0]["networks_a_second"]
    for entry in found:
        entry["efficiency"] = entry["networks_a_second"] / (entry["devices"] * single)
        print(entry, flush=True)
    write_result(
        "fleet.json",
        {
            "environment": environment(),
            "build_s": BUILD_S,
            "cores": os.cpu_count(),
            "fleets": found,
        },
    )


def _cluster(devices: int) -> Any:
    """Nodes of Ray that have so many devices."""
    from ray.cluster_utils import Cluster

    places = min(devices, PLACES_A_NODE)
    cluster = Cluster()
    cluster.add_node(num_cpus=0, include_dashboard=False, object_store_memory=200 * 2**20)
    for _ in range(devices // places):
        cluster.add_node(
            num_cpus=places,
            resources={resource("sleeping"): places},
            object_store_memory=200 * 2**20,
            wait=False,
        )
    cluster.wait_for_nodes()
    return cluster


def _throughput(devices: int) -> dict[str, Any]:
    """Measure on a fleet of so many devices, their processes started and anchors built before."""
    from chain import chain

    skeleton, options = chain((32, 48)), TargetOptions(batch=BATCH)
    setup = Setup(skeleton, "sleeping", options, load_target("sleeping", options).fingerprint())
    jobs = JOBS_A_DEVICE[devices] * devices
    wanted = first_widths(skeleton.groups, 1, 2 * devices + jobs, seed=0)
    cluster = _cluster(devices)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            LatencyDatabase(Path(folder) / "latency.sqlite") as database,
            Fleet(cluster.address, setup) as fleet,
        ):
            started = time.perf_counter()
            measure_on_fleet(fleet, database, wanted[: 2 * devices])
            warm = time.perf_counter()
            before = sum(worker.busy_s for worker in fleet.workers.values())
            measure_on_fleet(fleet, database, wanted)
            wall_s = time.perf_counter() - warm
            busy_s = sum(worker.busy_s for worker in fleet.workers.values()) - before
            stored = len(database.rows(skeleton.sha256))
    finally:
        cluster.shutdown()
    assert stored == len(wanted)
    return {
        "devices": devices,
        "networks": jobs,
        "wall_s": wall_s,
        "start_s": warm - started,
        "busy_share": busy_s / (devices * wall_s),
        "networks_a_second": jobs / wall_s,
    }


if __name__ == "__main__":
    main()
