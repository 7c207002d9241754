"""How often `pipeline check` cries wolf, and what it finds, in three layers.

(a) live: whole checks from the command line, without a slowdown and with known ones, half of them
    beside a busy neighbour. (b) replay: real blocks of all engines are recorded, quiet and noisy,
    and thousands of checks are made of them in recorded order. (c) Monte Carlo with the fake
    target, where the truth is known. Beside (a) and (b), what other gates say of the same calls.

Each layer resumes where it stopped; nothing is measured twice. A limit is 2.5 %, the default.

python -m benchmarks.check monte-carlo                  # minutes; needs no quiet machine
python -m benchmarks.check live                         # 140 checks, about 60 minutes
python -m benchmarks.check pool                         # 2 x 600 processes, about 50 minutes
python -m benchmarks.check replay                       # from the pool, a few minutes
python -m benchmarks.check live --checks 2 --folder try --out try.json   # a try
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.busy import neighbour
from benchmarks.check_engines import SHARES, TARGET, prepare
from benchmarks.check_replay import monte_carlo, replay
from benchmarks.check_rivals import Block, alarms
from benchmarks.common import RESULTS, environment, write_result
from benchmarks.networks import build
from pipeline.check.options import CheckOptions
from targets.base import TargetOptions
from targets.blocks import BlockRun, measure_blocks

LIVE = {"A/A": ("same", 60), "5%": ("5%", 40), "10%": ("10%", 40)}  # case -> network, checks
REPLAYED = {"A/A": "same", "3%": "3%", "5%": "5%", "10%": "10%"}
CONDITIONS = ("quiet", "noisy")
EXIT = {"pass": 0, "regression": 1, "inconclusive": 3}
FALSE_ALARMS, FOUND, LIVE_SECONDS = 0.01, {"5%": 0.95, "10%": 0.99}, 40.0
MOST = CheckOptions().processes


def main() -> None:
    options = _options()
    work: Path = options.folder
    if options.layer == "monte-carlo":
        _store(options, "monte_carlo", monte_carlo(options.checks or 10_000, MOST))
        return
    truth = prepare(work, options.truth_processes)
    print(f"true slowdowns: {truth['slowdown']}", flush=True)
    if options.layer == "live":
        _live(work, options.checks)
        _store(options, "live", {"truth": truth} | _live_summary(work))
    elif options.layer == "pool":
        _record(work, options.blocks)
    else:
        _store(options, "replay", {"truth": truth} | _replayed(work, options.checks or 10_000))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("layer", choices=("live", "pool", "replay", "monte-carlo"))
    parser.add_argument("--checks", type=int, help="of each case, where fewer than the goal do")
    parser.add_argument("--blocks", type=int, default=600, help="of each engine and condition")
    parser.add_argument("--truth-processes", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("runs/check"), help="to resume from")
    parser.add_argument("--out", default="check.json", help="name of the result file")
    return parser.parse_args()


def _store(options: argparse.Namespace, layer: str, found: dict[str, Any]) -> None:
    """Put a layer into the result file, beside the others."""
    path = RESULTS / options.out
    document = json.loads(path.read_text()) if path.exists() else {}
    document[layer] = found | {"environment": environment(TARGET)}
    write_result(options.out, document)


def _neighbour(condition: str) -> tuple[str, ...]:
    """Bursts on any core that we may use, or nobody."""
    cores = map(str, sorted(os.sched_getaffinity(0)))
    return ("bursts", *cores) if condition == "noisy" else ()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


# --- (a) live -------------------------------------------------------------------------------------


def _live(work: Path, checks: int | None) -> None:
    """All checks that are not in the folder yet, the cases by turns."""
    path = work / "live.jsonl"
    done = {(one["case"], one["condition"], one["index"]) for one in _lines(path)}
    for case, condition, index in _wanted(checks):
        if (case, condition, index) in done:
            continue
        with neighbour(_neighbour(condition)):
            record = {"case": case, "condition": condition, "index": index}
            record |= _one_check(work, LIVE[case][0])
        _append(path, record)
        told = f"{record['verdict']}, {record['wall_s']:.0f} s"
        print(f"{case}, {condition}, {index}: {told}", flush=True)


def _wanted(checks: int | None) -> Iterator[tuple[str, str, int]]:
    """Case, condition, number: half of each case's checks under either condition."""
    for index in range(max(count for _, count in LIVE.values()) // 2):
        for case, (_, count) in LIVE.items():
            if index < (checks or count // 2):
                for condition in CONDITIONS:
                    yield case, condition, index


def _one_check(work: Path, network: str) -> dict[str, Any]:
    samples = work / "samples.json"
    command = [
        *(Path(sys.executable).with_name("pipeline"), "check", work / f"{network}.onnx"),
        *("--against", work / "base.onnx", "--target", TARGET, "--json"),
        *("--noise", work / "noise.json", "--samples", samples),
    ]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = time.monotonic() - began
    if done.returncode not in EXIT.values():
        raise SystemExit(done.stderr)
    result = json.loads(done.stdout)
    assert EXIT[result["verdict"]] == done.returncode
    run = BlockRun.from_json(json.loads(samples.read_text()))
    blocks = {name: [Block.of(one) for one in of] for name, of in run.blocks.items()}
    gate = next(gate for gate in result["gates"] if gate["name"] == "slowdown")
    return {
        "verdict": result["verdict"],
        "wall_s": wall_s,
        "processes": result["processes"],
        "slowdown": gate["value"],
        "interval": gate["interval"],
        "cause": gate["cause"],
        "doubts": result["doubts"],
        "rivals": alarms(blocks["candidate"], blocks["baseline"]),
    }


def _live_summary(work: Path) -> dict[str, Any]:
    checks = _lines(work / "live.jsonl")
    cases: dict[str, Any] = {}
    for case in LIVE:
        for condition in (*CONDITIONS, "both"):
            some = [
                c for c in checks if c["case"] == case and condition in (c["condition"], "both")
            ]
            if some:
                cases.setdefault(case, {})[condition] = _shares(some)
    seconds = float(np.median([check["wall_s"] for check in checks]))
    found = {case: shares["both"]["shares"]["regression"] for case, shares in cases.items()}
    return {
        "cases": cases,
        "seconds_median": seconds,
        "goals": _goals(found) | {"seconds": seconds < LIVE_SECONDS},
        "checks": checks,
    }


def _shares(checks: list[dict[str, Any]]) -> dict[str, Any]:
    n = len(checks)
    return {
        "checks": n,
        "shares": {name: sum(one["verdict"] == name for one in checks) / n for name in EXIT},
        "seconds_median": float(np.median([one["wall_s"] for one in checks])),
        "processes_median": float(np.median([one["processes"] for one in checks])),
        "rival_alarms": {
            name: sum(one["rivals"][name] for one in checks) / n for name in checks[0]["rivals"]
        },
    }


def _goals(regressions: dict[str, float]) -> dict[str, bool]:
    """Whether the shares of regressions, by case, are what was wanted."""
    goals = {"false alarms": regressions["A/A"] <= FALSE_ALARMS} if "A/A" in regressions else {}
    return goals | {
        case: regressions[case] >= wanted for case, wanted in FOUND.items() if case in regressions
    }


# --- (b) pool and replay --------------------------------------------------------------------------


def _record(work: Path, blocks: int) -> None:
    """Fresh processes that time all engines; conditions by turns, 20 processes each."""
    engines = {
        name: build(TARGET, (work / f"{name}.onnx").read_bytes(), work / f"pool-{name}")
        for name in ("base", "same", *SHARES)
    }
    while short := [c for c in CONDITIONS if len(_lines(_pool(work, c))) < blocks]:
        condition = min(short, key=lambda c: len(_lines(_pool(work, c))))
        with neighbour(_neighbour(condition)):
            measure_blocks(
                TARGET,
                TargetOptions(threads=1),
                engines,
                processes=20,
                seconds_per_block=CheckOptions().block_seconds,
                stop=_keeper(_pool(work, condition), blocks),
            )
        print(f"{condition}: {len(_lines(_pool(work, condition)))} of {blocks}", flush=True)


def _pool(work: Path, condition: str) -> Path:
    return work / f"pool-{condition}.jsonl"


def _keeper(path: Path, blocks: int) -> Any:
    """Writes the latest block of each engine, and stops when there are enough."""

    def keep(run: BlockRun) -> bool:
        _append(path, {name: asdict(Block.of(of[-1])) for name, of in run.blocks.items()})
        return len(_lines(path)) >= blocks

    return keep


def _replayed(work: Path, checks: int) -> dict[str, Any]:
    """Checks replayed under both conditions, and the goals over both."""
    cases: dict[str, Any] = {}
    for seed, (case, network) in enumerate(REPLAYED.items()):
        for condition in CONDITIONS:
            rows = _lines(_pool(work, condition))
            candidate, baseline = (
                [Block(**row[name]) for row in rows] for name in (network, "base")
            )
            found = replay(candidate, baseline, checks // 2, MOST, seed)
            cases.setdefault(case, {})[condition] = found | {"blocks": len(rows)}
            print(f"{case}, {condition}: {found['shares']}, {found['rival_alarms']}", flush=True)
    regressions = {
        case: float(np.mean([one["shares"]["regression"] for one in of.values()]))
        for case, of in cases.items()
    }
    return {"cases": cases, "goals": _goals(regressions)}


if __name__ == "__main__":
    main()
