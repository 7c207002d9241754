"""Tables behind the verdict: their values, what is missing, and what is no certificate."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pipeline.errors import DeployError
from pipeline.report import render_report
from pipeline.report.evidence import attribution, counterfactual, flips, footprint
from tests.pipeline.test_report import CERTIFICATE, write_run

STEP = {
    "before": "dense",
    "after": "pruned",
    "n": 360,
    "lost": 34,
    "won": 2,
    "changed": 1041,
    "change": -0.0889,
    "ci95": [-0.1231, -0.0547],
    "p": 4.1e-8,
}
COLD = {
    "ready_s": 0.512,
    "load_s": 0.143,
    "first_call_ms": 3.25,
    "warm_call_ms": 0.911,
    "before_bytes": 41 << 20,
    "loaded_bytes": 97 << 20,
    "peak_bytes": 101 << 20,
    "ready_range_s": [0.5, 0.6],
    "starts": 3,
}
MEDIAN = {"p50": 1.5, "p90": None, "p99": None, "ci95": [1.49, 1.52], "samples": 99}
FOUND: dict[str, Any] = {
    "alternatives": [
        {
            "target": "ort-cpu-int8",
            "precision": "int8",
            "latency_ms": MEDIAN | {"p50": 0.75, "ci95": [0.74, 0.76]},
            "top1_loss": 0.0042,
            "reason": "",
        },
        {
            "target": "ort-cpu-fp16",
            "precision": "fp16",
            "latency_ms": None,
            "top1_loss": None,
            "reason": "no node can be fp16",
        },
    ],
    "dense": MEDIAN,
    "engine": MEDIAN | {"p50": 0.9, "ci95": [0.89, 0.91]},
    "best": "ort-cpu-int8",
    "speedup": {"median": 0.833, "ci95": [0.82, 0.84]},
}


# accuracy ---------------------------------------------------------------------------------


def test_steps_are_shown_with_what_they_lost_and_won() -> None:
    table = attribution({"attribution": [STEP]})
    assert table is not None
    assert table.rows == (
        ("dense to pruned", "−8.89 (−12.31 to −5.47)", "34", "2", "1,041", "4.1e-08"),
    )
    assert len(table.columns) == len(table.rows[0])


@pytest.mark.parametrize("certificate", [{}, {"attribution": []}])
def test_without_steps_there_is_no_table(certificate: dict[str, Any]) -> None:
    assert attribution(certificate) is None


def test_flipped_labels_have_their_images() -> None:
    shown = [
        {"image": number, "label": "7", "onnx": "7", "engine": "1", "png": "AAAA"}
        for number in (3, 8)
    ]
    steps = [
        {"before": "onnx", "after": "engine", "count": 1200, "shown": shown},
        {"before": "dense", "after": "pruned", "count": 0, "shown": []},
    ]
    ((heading, images),) = flips({"steps": steps})
    assert heading == "onnx to engine: 1,200 labels changed, the first 2"
    assert images[1] == {"png": "AAAA", "text": "image 8: 7; onnx said 7, engine 1"}
    ((whole, _),) = flips({"steps": [steps[0] | {"count": 2}]})
    assert whole == "onnx to engine: 2 labels changed"


# other precisions -------------------------------------------------------------------------


def test_the_dense_network_stands_beside_the_pruned_one_at_every_precision() -> None:
    table = counterfactual({"target": "ort-cpu", "counterfactual": FOUND})
    assert table is not None
    assert table.rows == (
        ("dense, ort-cpu", "1.500 (1.490 to 1.520)", "–", "–"),
        ("dense, ort-cpu-int8", "0.7500 (0.7400 to 0.7600)", "0.42", "–"),
        ("dense, ort-cpu-fp16", "–", "–", "no node can be fp16"),
        (
            "pruned, ort-cpu",
            "0.9000 (0.8900 to 0.9100)",
            "–",
            "0.833x (0.820x to 0.840x) as fast as the fastest dense one, ort-cpu-int8",
        ),
    )


def test_alternatives_that_could_not_be_built_are_told_alone() -> None:
    nothing = {"alternatives": FOUND["alternatives"][1:], "best": None}
    table = counterfactual({"target": "ort-cpu", "counterfactual": nothing})
    assert table is not None
    assert table.rows == (("dense, ort-cpu-fp16", "–", "–", "no node can be fp16"),)


@pytest.mark.parametrize("found", [None, {"alternatives": [], "best": None}])
def test_without_alternatives_there_is_no_table(found: Any) -> None:
    assert counterfactual({"counterfactual": found}) is None
    assert counterfactual({}) is None


# cold start -------------------------------------------------------------------------------


def test_cold_starts_are_shown_beside_the_dense_engines() -> None:
    smaller = COLD | {"ready_s": 0.4, "loaded_bytes": 70 << 20}
    table = footprint({"footprint": {"dense": COLD, "engine": smaller}})
    assert table is not None
    assert table.caption == "Cold start and memory, medians of 3 processes"
    assert {row[0]: row[1:] for row in table.rows} == {
        "seconds from start to first answer": ("0.512", "0.4"),
        "of that, loading, s": ("0.143", "0.143"),
        "first call ms": ("3.25", "3.25"),
        "later calls ms": ("0.911", "0.911"),
        "resident before loading, MiB": ("41.0", "41.0"),
        "resident after the first answer, MiB": ("97.0", "70.0"),
        "most resident, MiB": ("101.0", "101.0"),
    }


def test_without_cold_starts_there_is_no_table() -> None:
    assert footprint({"footprint": None}) is None
    assert footprint({}) is None


# what is no certificate -------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoiled",
    [
        {"attribution": [{"before": "dense"}]},
        {"attribution": 3},
        {"attribution": [STEP | {"change": "much"}]},
        {"counterfactual": {"best": None}},
        {"counterfactual": {"alternatives": [{"target": "x"}]}},
        {"footprint": {"dense": COLD}},
        {"footprint": {"dense": COLD, "engine": COLD | {"ready_s": None}}},
    ],
)
def test_a_certificate_of_another_form_is_refused(tmp_path: Any, spoiled: dict[str, Any]) -> None:
    documents = {"verify/certificate.json": copy.deepcopy(CERTIFICATE) | spoiled}
    with pytest.raises(DeployError, match="is damaged") as caught:
        render_report(write_run(tmp_path, documents))
    assert caught.value.fix
