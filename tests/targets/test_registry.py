from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import targets
from targets import known_targets, load_target
from targets.base import TargetOptions
from targets.errors import TargetUnavailableError

ROOT = Path(targets.__file__).parent.parent


def test_every_listed_target_loads_under_its_name() -> None:
    for name in known_targets(include_hidden=True):
        assert load_target(name, TargetOptions()).name == name


def test_the_fake_is_listed_only_on_request() -> None:
    assert "fake" not in known_targets()
    assert "fake" in known_targets(include_hidden=True)


def test_an_unknown_name_is_repeated_with_a_suggestion() -> None:
    with pytest.raises(TargetUnavailableError, match="'ort-cpi'.*mean 'ort-cpu'.*known targets"):
        load_target("ort-cpi", TargetOptions())
    with pytest.raises(TargetUnavailableError) as raised:
        load_target("zzz", TargetOptions())
    assert "did you mean" not in str(raised.value)
    assert "ort-cpu" in str(raised.value)


def test_installed_packages_add_targets_but_do_not_replace_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "wgates.targets"
        return [
            EntryPoint("npu", "targets.fake:FakeTarget", group),
            EntryPoint("ort-cpu", "elsewhere:Other", group),
            EntryPoint("gone", "no_such_module:Target", group),
        ]

    monkeypatch.setattr(targets, "entry_points", entry_points)
    assert known_targets()["npu"] == "targets.fake:FakeTarget"
    assert known_targets()["ort-cpu"] == targets.TARGETS["ort-cpu"]
    assert load_target("npu", TargetOptions()).is_available() == ()
    with pytest.raises(TargetUnavailableError, match="'gone' cannot be imported"):
        load_target("gone", TargetOptions())


@pytest.mark.parametrize("module", ["targets", "targets.blocks", "targets.ort.cpu"])
def test_importing_loads_no_runtime(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'pipeline', 'calibration'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("options", [{"batch": 0}, {"threads": 0}, {"threads": -1}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TargetOptions(**options)
