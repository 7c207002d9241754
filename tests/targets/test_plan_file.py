from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from targets.errors import EngineError
from targets.plan_file import PlanHeader, bare, read_plan, sha256, write_plan

PLAN = b"ftrt" + bytes(range(256)) * 20
HEADER = PlanHeader(
    target="trt-rtx-fp16",
    runtime="tensorrt_rtx 1.7.1.116",
    compute_capabilities=("sm86", "sm89"),
    device="",
    batch=8,
    onnx_sha256=sha256(b"onnx"),
    plan_sha256=sha256(PLAN),
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    write_plan(tmp_path / "a.plan", HEADER, PLAN)
    return tmp_path / "a.plan"


def test_header_and_plan_come_back(engine: Path) -> None:
    assert read_plan(engine) == (HEADER, PLAN)
    assert bare(engine) == PLAN
    assert json.loads(json.dumps(HEADER.to_json())) == HEADER.to_json()


def test_writing_leaves_one_file(engine: Path) -> None:
    write_plan(engine, HEADER, PLAN)
    assert list(engine.parent.iterdir()) == [engine]


@pytest.mark.parametrize("kept", [0, 7, 20, 60, 300, -1])
def test_a_truncated_file_is_refused(engine: Path, kept: int) -> None:
    engine.write_bytes(engine.read_bytes()[:kept])
    with pytest.raises(EngineError, match="cut short.*pipeline build"):
        read_plan(engine)


@pytest.mark.parametrize("position", [9, 15, 80, -1, -2000])
def test_a_flipped_bit_is_noticed(engine: Path, position: int) -> None:
    content = bytearray(engine.read_bytes())
    content[position] ^= 1
    engine.write_bytes(content)
    with pytest.raises(EngineError, match="damaged or cut short"):
        read_plan(engine)


def test_a_bare_plan_is_foreign(engine: Path) -> None:
    engine.write_bytes(PLAN)
    with pytest.raises(EngineError, match="foreign"):
        read_plan(engine)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.plan: No such file"):
        read_plan(tmp_path / "absent.plan")


def test_a_header_with_other_fields_is_refused(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = {**HEADER.to_json(), "colour": "green"}
    monkeypatch.setattr(PlanHeader, "to_json", lambda self: longer)
    write_plan(engine, HEADER, PLAN)
    with pytest.raises(EngineError, match="another version.*colour"):
        read_plan(engine)


def test_a_plan_of_another_build_is_refused(engine: Path) -> None:
    write_plan(engine, replace(HEADER, plan_sha256=sha256(b"other")), PLAN)
    with pytest.raises(EngineError, match="another SHA-256"):
        bare(engine)
