"""Our latencies beside those of outside judges, and what our own loop adds to a call.

The same engine, threads and batch, in turns: OpenVINO's benchmark_app beside `openvino-cpu`, ONNX
Runtime's profile beside `ort-cpu`, and a bare loop beside ours on a call of known length.

python -m benchmarks.judges                # about 3 minutes, on one core
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.common import environment, write_result
from benchmarks.networks import build, small_cnn
from targets import load_target
from targets.base import Engine, TargetOptions
from targets.samples import Samples
from targets.timing import time_calls, warm_up

# some 4 and 12 ms on one core of a server: ONNX Runtime's profile costs some 60 us a call itself,
# so of shorter calls it is no judge
IMAGE_SIZES = {"medium": 128, "large": 224}
OVERHEAD_IMAGE_SIZE = 64  # some 1 ms
WIDTH = 64
SLICE_S = 0.2  # of a turn
BENCHMARK_APP_S = 1  # of its turn, in whole seconds
AGREEMENT_GOAL, OVERHEAD_GOAL = 0.03, 0.005
SPIN_NS = 1_000_000
CALLS = 3  # in a turn of the overhead's loops, so that few turns are preempted
ONE_THREAD = TargetOptions(threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20, help="of each judge")
    parser.add_argument("--out", default="judges.json", help="name of the result file")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        networks = {
            name: _agreements(Path(folder) / f"{name}.onnx", size, options.turns)
            for name, size in IMAGE_SIZES.items()
        }
        for name, found in networks.items():
            _tell(name, found)
        overhead = _overheads(Path(folder) / "overhead.onnx", options.turns)
        _tell("our loop", overhead)
    openvino = load_target("openvino-cpu", ONE_THREAD).fingerprint()
    document = {
        "command": " ".join(("python -m benchmarks.judges", *sys.argv[1:])),
        "environment": environment() | {"openvino": openvino.to_json()},
        "goals": {"agreement": AGREEMENT_GOAL, "overhead": OVERHEAD_GOAL},
        "image_sizes": IMAGE_SIZES | {"overhead": OVERHEAD_IMAGE_SIZE},
        "agreement": networks,
        "overhead": overhead,
    }
    write_result(options.out, document)


def _agreements(onnx: Path, size: int, turns: int) -> dict[str, Any]:
    """Both targets beside their own runtime's tool, on the small CNN at one image size."""
    onnx.write_bytes(small_cnn(WIDTH, size=size))
    return {
        "OpenVINO's benchmark_app": _beside_benchmark_app(onnx, turns),
        "ONNX Runtime's profile": _beside_profile(onnx, turns),
    }


def _overheads(onnx: Path, turns: int) -> dict[str, Any]:
    """What our loop adds to a call of a real engine, and to one of known length."""
    built = build("ort-cpu", small_cnn(WIDTH, size=OVERHEAD_IMAGE_SIZE), onnx)
    with load_target("ort-cpu", ONE_THREAD).load(built) as engine:
        warm_up(engine)
        real = _loop_overhead(engine.call, 100 * turns)
    return {"ort-cpu": real, "busy wait of 1 ms": _loop_overhead(_spin, 100 * turns)}


def _beside_benchmark_app(onnx: Path, turns: int) -> dict[str, Any]:
    """Medians of `openvino-cpu` and of OpenVINO's own tool, in turns."""
    target = load_target("openvino-cpu", ONE_THREAD)
    engine_file = target.build(onnx, onnx.with_suffix(target.engine_suffix)).engine
    ours_ms, theirs_ms = [], []
    with target.load(engine_file) as engine:
        for _ in range(turns):
            theirs_ms.append(_benchmark_app_ms(onnx))
            warm_up(engine)
            ours_ms.append(_median_ms(engine, BENCHMARK_APP_S))
    return _agreement(ours_ms, theirs_ms)


def _benchmark_app_ms(onnx: Path) -> float:
    """The median latency that benchmark_app reports, in its synchronous mode on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(str(Path(sys.executable).with_name("benchmark_app")), "-m", str(onnx), "-d", "CPU"),
            *("-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", "1", "-pin", "NO"),
            *("-infer_precision", "f32", "-t", str(BENCHMARK_APP_S)),
            *("-report_type", "no_counters", "-json_stats", "-report_folder", folder),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"benchmark_app failed: {done.stderr.strip() or done.stdout.strip()}")
        report = json.loads((Path(folder) / "benchmark_report.json").read_text())
    return float(report["execution_results"]["latency (ms)"])


def _beside_profile(onnx: Path, turns: int) -> dict[str, Any]:
    """Medians of `ort-cpu` and of `model_run` in ONNX Runtime's own profile, in turns."""
    target = load_target("ort-cpu", ONE_THREAD)
    engine_file = target.build(onnx, onnx.with_suffix(".engine.onnx")).engine
    session = _profiled_session(engine_file)
    profiled, ours_ms = [], []
    with target.load(engine_file) as engine:
        call = _bound_call(session, engine.input_shape)
        call()
        warm_up(engine)
        calls = max(10, round(SLICE_S * 1e3 / float(np.median(engine.time_ms(5).ms))))
        for _ in range(turns):
            profiled.append(time_calls(call, calls))
            ours_ms.append(engine.time_ms(calls).median_ms())
    took_ms = _model_runs_ms(Path(session.end_profiling()))[1:].reshape(turns, calls)
    theirs_ms = [
        float(np.median(row[samples.clean])) for row, samples in zip(took_ms, profiled, strict=True)
    ]
    same = Samples.concatenate(profiled)
    beside = np.median((same.ms / took_ms.ravel())[same.clean])
    # profiling costs time itself, inside what it reports; of the very same calls both must agree
    return _agreement(ours_ms, theirs_ms) | {"difference_on_same_calls": float(beside) - 1}


def _profiled_session(engine_file: Path) -> ort.InferenceSession:
    """A session of the same file with the target's settings, which writes a profile."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(engine_file.with_suffix(".profile"))
    return ort.InferenceSession(str(engine_file), options, providers=["CPUExecutionProvider"])


def _bound_call(session: ort.InferenceSession, shape: tuple[int, ...]) -> Callable[[], None]:
    """A call of the session on bound random images, (N, C, H, W)."""
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, images)
    binding.bind_output(session.get_outputs()[0].name)
    return lambda: session.run_with_iobinding(binding)


def _model_runs_ms(profile: Path) -> NDArray[np.float64]:
    """What each call took by the profile, in ms, (calls,)."""
    events = json.loads(profile.read_text())
    return np.array([event["dur"] for event in events if event["name"] == "model_run"]) / 1e3


def _median_ms(engine: Engine, seconds: float) -> float:
    call_ms = float(np.median(engine.time_ms(5).ms))
    samples = engine.time_ms(max(10, round(1e3 * seconds / call_ms)))
    return samples.median_ms()


def _agreement(ours_ms: list[float], theirs_ms: list[float]) -> dict[str, Any]:
    """Both medians of medians, and how far ours is above theirs in the turns side by side."""
    difference = float(np.median(np.array(ours_ms) / np.array(theirs_ms))) - 1
    return {
        "ours_ms": float(np.median(ours_ms)),
        "theirs_ms": float(np.median(theirs_ms)),
        "difference": difference,
        "goal_met": abs(difference) <= AGREEMENT_GOAL,
        "turns_ours_ms": ours_ms,
        "turns_theirs_ms": theirs_ms,
    }


def _spin() -> None:
    """Wait busily for exactly SPIN_NS, up to one reading of the clock."""
    end = time.perf_counter_ns() + SPIN_NS
    while time.perf_counter_ns() < end:
        pass


def _loop_overhead(call: Callable[[], object], turns: int) -> dict[str, Any]:
    """What our loop reports above a bare loop and above the time of all calls, in turns."""
    loops = {"ours": _our_median_ms, "bare": _bare_median_ms, "total": _total_over_calls_ms}
    took_ms: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(turns):
        for name, loop in loops.items():
            before = getrusage(RUSAGE_SELF).ru_nivcsw
            loop_ms = loop(call)
            # a preemption is no part of a call, and the total cannot leave it out
            if getrusage(RUSAGE_SELF).ru_nivcsw == before:
                took_ms[name].append(loop_ms)
    fewest = min(map(len, took_ms.values()))
    if fewest < turns / 4:
        raise SystemExit(f"only {fewest} of {turns} turns ran undisturbed: free the core")
    ours, bare, total = (float(np.median(took_ms[name])) for name in loops)
    return {
        "ours_ms": ours,
        "theirs_ms": bare,
        "total_over_calls_ms": total,
        "difference": ours / bare - 1,
        "difference_to_total": ours / total - 1,
        "goal_met": ours / bare - 1 <= OVERHEAD_GOAL,
        "turns_ms": took_ms,
    }


def _our_median_ms(call: Callable[[], object]) -> float:
    return float(np.median(time_calls(call, CALLS).ms))


def _bare_median_ms(call: Callable[[], object]) -> float:
    took_ns = []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        call()
        took_ns.append(time.perf_counter_ns() - start)
    return float(np.median(took_ns)) / 1e6


def _total_over_calls_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (time.perf_counter_ns() - start) / CALLS / 1e6


def _tell(name: str, found: dict[str, dict[str, Any]]) -> None:
    for judge, result in found.items():
        verdict = "goal met" if result["goal_met"] else "goal missed"
        ours, theirs = result["ours_ms"], result["theirs_ms"]
        print(f"{name}, {judge}: {ours:.4f} against {theirs:.4f} ms", end="")
        print(f", {result['difference']:+.2%}, {verdict}", flush=True)


if __name__ == "__main__":
    main()
