"""One JSON job in a fresh Python process: both ends of `python -m MODULE`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from targets.errors import DeployError, EngineError


def ask_fresh_process(module: str, job: Mapping[str, Any], *, limit_s: float, name: str) -> Any:
    """The JSON answer of a new interpreter that serves `job` by `module`; `name` for errors.

    The process inherits our affinity mask. EngineError if it fails or outlasts `limit_s`.
    """
    try:
        # -P: a folder named `targets` where the user happens to be must not be imported instead
        child = subprocess.run(
            [sys.executable, "-P", "-m", module],
            input=json.dumps(job),
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        raise EngineError(
            f"the {name} process did not end within {limit_s:.0f} s",
            fix="see that nothing else holds the device, and run it again",
        ) from expired
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines()
        reason = lines[-1] if lines else _end_of(child.returncode)
        raise EngineError(
            f"the {name} process failed: {reason}",
            fix="mend that and run the same command again"
            if lines
            else "run the same command again; if it fails again, see that memory is not short",
        )
    return json.loads(child.stdout)


def serve_job(answer: Callable[[dict[str, Any]], Any]) -> int:
    """Answer the job on stdin by JSON on stdout; the exit status, 1 after a DeployError.

    Native libraries that print to stdout are heard on stderr.
    """
    result = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        found = answer(json.load(sys.stdin))
    except DeployError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 1
    with result:
        json.dump(found, result)
    return 0


def _end_of(status: int) -> str:
    """How a process ended that said nothing."""
    return f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"


def _environment() -> dict[str, str]:
    """Ours, with this package to be found wherever the process is started."""
    folder = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = folder if not inherited else folder + os.pathsep + inherited
    return os.environ | {"PYTHONPATH": path}
