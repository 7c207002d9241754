"""What every benchmark records, and how result files are written, joined and told."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calibration.widths import dump
from targets import load_target
from targets.base import TargetOptions

RESULTS = Path(__file__).parent / "results"
CALIBRATED = ("prepare", "trace", "calibrate")  # the stages that runs of a base have in common
PACKAGES = ("wgates", "torch", "torchvision", "onnx", "onnxruntime", "numpy", "lightning-fabric")


def environment(target: str = "ort-cpu", threads: int = 1) -> dict[str, Any]:
    """Versions, the target's fingerprint and the commit that the numbers come from."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": load_target(target, TargetOptions(threads=threads)).fingerprint().to_json(),
    }


def commit() -> str:
    """The commit that lies checked out here; empty where git knows none."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def write_result(name: str, document: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name
    path.write_text(dump(document), encoding="utf-8")
    print(f"wrote {path}")


def made(environment: Mapping[str, Any]) -> dict[str, str]:
    """The commit, time and device of a part of a result, whose other parts may be older."""
    return {
        "commit": environment["commit"],
        "at": environment["at"],
        "device": environment["machine"]["device"],
    }


def older_result(name: str, **alike: Any) -> dict[str, Any]:
    """The result file as it is; empty where there is none, or where one of `alike` differs."""
    path = RESULTS / name
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = all(found.get(key) == json.loads(dump(value)) for key, value in alike.items())
    return found if same else {}


def machines(of: Mapping[str, str]) -> str:
    """The device that most parts of a result were measured on, and which parts were elsewhere."""
    usual = Counter(of.values()).most_common(1)[0][0]
    others = "; ".join(f"{name}: {device}" for name, device in of.items() if device != usual)
    return f"{usual} ({others})" if others else usual


def pipeline(*arguments: str) -> None:
    """Run the console command; its exit codes 1 and 3 for a verdict do not stop a study."""
    script = Path(sys.executable).with_name("pipeline")
    print("$ pipeline", " ".join(arguments), flush=True)
    done = subprocess.run([script, *arguments], check=False)
    if done.returncode not in (0, 1, 3):
        raise SystemExit(done.returncode)


def start_from(base: Path, folder: Path) -> None:
    """Give a new run folder what was calibrated in `base`, with the options of that.

    A run folder also keeps the options of stages to come: those are not copied, so that the
    defaults of the code that prunes count and not those of the code that calibrated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in CALIBRATED:
        if not (folder / name).exists():
            shutil.copytree(base / name, folder / name)
    if not (folder / "run.toml").exists():
        head, *tables = re.split(r"^(?=\[)", (base / "run.toml").read_text("utf-8"), flags=re.M)
        kept = [table for table in tables if table[1:].partition("]")[0] in CALIBRATED]
        (folder / "run.toml").write_text(head + "".join(kept), encoding="utf-8")
