"""What may be imported where: each test looks at a fresh interpreter that lacks some packages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from targets import HIDDEN, TARGETS

ROOT = Path(__file__).parents[1]
RUNTIMES = ("cuda", "onnxruntime", "openvino", "pycuda", "tensorrt", "tensorrt_rtx")
TORCH = ("torch", "torchvision")
PREDICTORS = ("lpnet", "plain", "structured", "terms")
# adapter files may need their runtime; the fake target has none
ADAPTERS = {place.partition(":")[0] for name, place in TARGETS.items() if name not in HIDDEN}

HELP_LIMIT_S = 0.4
HELP_ATTEMPTS = 5

# as the console script `pipeline` does it
CONSOLE = "from pipeline.cli import main; main()"

# hidden packages look exactly like packages that are not installed, `find_spec` included
HIDE = """
import sys
from importlib.machinery import PathFinder

hidden = set(sys.argv.pop(1).split(","))

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""

IMPORT_ALL = """
import importlib, json
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""

UNAVAILABLE_REASONS = """
import json
from targets import load_target
from targets.base import TargetOptions
reasons = {name: load_target(name, TargetOptions()).is_available() for name in sys.argv[1:]}
print(json.dumps(reasons))
"""

CALL_COMMAND = """
from pipeline.cli import main
main(sys.argv[1:], standalone_mode=False)
print("imported:", *sys.modules)
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter, in the root of the checkout."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def run_without(hidden: Iterable[str], code: str, *arguments: str) -> str:
    """The standard output of `code` where `hidden` packages are not installed."""
    done = run_python(HIDE + code, ",".join(hidden), *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def failed_imports(hidden: Iterable[str], modules: Iterable[str]) -> dict[str, str]:
    """Those of `modules` that need a hidden package: module -> message."""
    return json.loads(run_without(hidden, IMPORT_ALL, *modules))


def modules_of(package: str) -> set[str]:
    files = (ROOT / package).rglob("*.py")
    dotted = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    return {name.removesuffix(".__init__") for name in dotted}


@pytest.mark.parametrize("package", ["numpy", "torch", "onnxruntime"])
def test_hiding_hides(package: str) -> None:
    # guards the tests below: with a leaky finder they would all pass
    assert package in failed_imports([package], [package, "json"])


def test_targets_import_without_any_runtime() -> None:
    modules = modules_of("targets") - ADAPTERS
    assert {"targets", "targets.base", "targets.timing", "targets.fake"} <= modules
    assert failed_imports(TORCH + RUNTIMES, modules) == {}


def test_adapters_import_without_torch() -> None:
    adapters_without_runtime = failed_imports(RUNTIMES, ADAPTERS)
    assert failed_imports(TORCH + RUNTIMES, ADAPTERS) == adapters_without_runtime


def test_target_without_its_runtime_says_what_is_missing() -> None:
    names = sorted(set(TARGETS) - HIDDEN)
    reasons = json.loads(run_without(RUNTIMES, UNAVAILABLE_REASONS, *names))
    silent = [name for name in names if not reasons[name]]
    assert not silent


def test_calibration_imports_without_torch_except_what_is_differentiated() -> None:
    modules = modules_of("calibration")
    differentiated = {f"calibration.{name}" for name in ("counts", *PREDICTORS)}
    assert set(failed_imports(TORCH, modules)) == differentiated


@pytest.mark.parametrize("command", ["--help", "run --help", "check --help", "targets"])
def test_command_starts_without_torch_installed(command: str) -> None:
    output = run_without(TORCH, CALL_COMMAND, *command.split())
    printed, _, imported = output.rpartition("imported:")
    assert printed.strip()
    assert "torch" not in imported.split()


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        ("--help", {"torch", "onnxruntime", "plotly", "scipy"}),
        ("run --help", {"torch", "onnxruntime", "plotly", "scipy"}),
        ("check --help", {"torch", "onnxruntime", "plotly", "scipy"}),
        ("targets", {"torch", "plotly"}),
    ],
)
def test_command_leaves_slow_packages_alone(command: str, unwanted: set[str]) -> None:
    # nothing is hidden here, so that an import inside `try` is seen too
    done = run_python("import sys\n" + CALL_COMMAND, *command.split())
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.rpartition("imported:")[2].split())
    assert "pipeline.cli" in imported
    assert not unwanted & imported


def test_help_comes_at_once() -> None:
    """Wall time from starting the interpreter to its end; the best of a few attempts counts.

    Other work on the machine only ever adds time, so one quick attempt proves the point.
    """
    seconds: list[float] = []
    while len(seconds) < HELP_ATTEMPTS and min(seconds, default=HELP_LIMIT_S) >= HELP_LIMIT_S:
        start = time.perf_counter()
        done = run_python(CONSOLE, "--help")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < HELP_LIMIT_S, f"seconds of each attempt: {seconds}"
