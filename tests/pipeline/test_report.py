"""The page says what the certificate says, loads nothing, and survives hostile names."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DeployError, MissingInputError
from pipeline.report import render_report, summary_rows
from pipeline.report.documents import Documents
from pipeline.report.page import headline
from pipeline.report.plots import gate_health, gates

GROUPS = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
FULL = [16, 16, 16, 32, 32, 32, 64, 64, 64]
KEPT = [8, 16, 8, 16, 24, 16, 32, 24, 40]
ANCHOR_MS, BUDGET_MS, AIM_MS = 1.504, 0.9024, 0.8844

INT8: dict[str, Any] = {
    "kept_fp32": [],
    "facts": {"quantizer": "qdq", "images": 128, "layers": {"int8": 20, "fp32": 3}},
    "top1_loss": 0.0042,
    "n": 144,
    "tried": [{"kept": 0, "top1_loss": 0.0042}],
}
FORMS = [
    {"quantizer": "qdq", "top1_loss": 0.0042, "ratio": 1.0, "ratio_ci95": [1.0, 1.0]},
    {"quantizer": "nncf", "top1_loss": 0.0069, "ratio": 0.93, "ratio_ci95": [0.92, 0.94]},
]
FINGERPRINT = {
    "target": "ort-cpu",
    "precision": "fp32",
    "device": "GenuineIntel 6/143/8 Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    "runtime": "onnxruntime 1.31.1",
    "driver": "",
    "batch": 1,
    "threads": 2,
    "affinity": 2,
    "settings": ["optimization=all", "spinning=1"],
    "isa": ["avx2", "avx512_vnni", "avx512f", "fma"],
    "cgroup_quota": None,
    "clocks": "",
}

CERTIFICATE: dict[str, Any] = {
    "schema": 1,
    "model": "wgates:resnet20",
    "data": "digits",
    "target": "ort-cpu",
    "fingerprint": FINGERPRINT,
    "budget": "0.6x",
    "budget_ms": BUDGET_MS,
    "percentile": "p50",
    "verdict": "met",
    "latency_ms": {
        "engine": {
            "p50": 0.8871,
            "p90": 0.9312,
            "p99": 1.2044,
            "ci95": [0.8832, 0.8925],
            "samples": 3960,
        },
        "dense": {
            "p50": 1.5113,
            "p90": 1.5871,
            "p99": None,
            "ci95": [1.5021, 1.5202],
            "samples": 210,
        },
        "predicted": {
            "p50": 0.8795,
            "p90": None,
            "p99": None,
            "ci95": [0.8533, 0.9065],
            "samples": 200,
        },
    },
    "speedup": {"median": 1.7036, "ci95": [1.6952, 1.7122]},
    "accuracy": {
        "dense": {"top1": 0.9861, "n": 360, "ci95": [0.9678, 0.9941]},
        "pruned": {"top1": 0.8972, "n": 360, "ci95": [0.8616, 0.9245]},
        "finetuned": {"top1": 0.9833, "n": 360, "ci95": [0.9641, 0.9923]},
        "onnx": {"top1": 0.9833, "n": 360, "ci95": [0.9641, 0.9923]},
        "engine": {"top1": 0.9806, "n": 360, "ci95": [0.9604, 0.9906]},
    },
    "parity": {"max_abs": 3.1e-6, "max_rel": 2.4e-7, "label_flips": 1, "n": 360},
    "params": {"dense": 272186, "pruned": 97834},
    "macs": {"dense": 40551808, "pruned": 15210112},
    "engine_bytes": {"dense": 1102311, "pruned": 402117},
    "doubts": ["3 of 12 processes were preempted in more than 1 % of their calls"],
}


def history(epochs: int, *, first_top1: float) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "loss": round(1.9 * 0.75**epoch + 0.05, 4),
            "val_top1": round(0.98 - (0.98 - first_top1) * 0.7 ** (epoch - 1), 4),
            "seconds": 4.1,
        }
        for epoch in range(1, epochs + 1)
    ]


def gated_history() -> list[dict[str, float]]:
    """Six epochs of live gates, then two on fixed masks, which predict nothing."""
    live = [
        {
            "predicted": AIM_MS + 0.6 * 0.45**epoch,
            "multiplier": 0.3,
            "live": 0.98,
            "open": 1 - 0.1 * epoch,
            "flicker": 0.03,
        }
        for epoch in range(6)
    ]
    epochs = history(8, first_top1=0.7)
    return [{**a, **b} for a, b in zip(epochs, [*live, {}, {}], strict=True)]


def calibration() -> dict[str, Any]:
    random = np.random.default_rng(0)
    predicted = random.uniform(0.3, 1.0, 200)
    measured = predicted * np.exp(0.018 * random.standard_normal(200))
    return {
        "target": "ort-cpu",
        "fingerprint": FINGERPRINT,
        "anchor_ms": ANCHOR_MS,
        "floor": {"ms": 0.4512, "ratio": 0.3},
        "samples": 200,
        "held_out": {
            "records": 200,
            "mean": 0.0145,
            "p90": 0.0301,
            "within_5": 0.985,
            "within_10": 1.0,
            "spearman": 0.9951,
            "interval_90": 0.0302,
        },
        "scatter": [
            {"predicted": p, "measured": m, "low": 0.99 * m, "high": 1.01 * m}
            for p, m in zip(predicted.tolist(), measured.tolist(), strict=True)
        ],
        "doubts": ["4 of 200 measurements have doubts about the steal time"],
        "stopped": "--samples 200 are measured",
        "curve": [
            {"samples": 32, "active": 0.04, "random": 0.04},
            {"samples": 150, "active": 0.015, "random": 0.02},
        ],
        "cliffs": [
            cliff(GROUPS[-1], 64, 16),
            cliff(GROUPS[-2], 64, 1),
            cliff(GROUPS[-3], 64, None),
        ],
        "feasibility": {
            "speedup": 3.3333,
            "parts": {"compute": 0.7, "traffic": 0.1, "fixed": 0.2},
            "groups": [
                {"group": name, "channels": full, "removable": 0.01 * place}
                for place, (name, full) in enumerate(zip(GROUPS, FULL, strict=True))
            ],
            "verdict": "at most 3.33 times faster",
        },
        "phases": {
            "wall_s": 100.0,
            "seconds": {"build": 20.0, "time": 75.0, "other": 5.0},
            "share": {"build": 0.2, "time": 0.75, "other": 0.05},
        },
    }


def cliff(group: str, channels: int, step: int | None) -> dict[str, Any]:
    return {
        "group": group,
        "channels": channels,
        "step": step,
        "evidence": 12.34,
        "drop": 0.031,
        "widths": [channels, channels - 8, channels - 16],
        "ratios": [1.0, 0.999, 0.969],
        "errors": [0.005, 0.006, 0.005],
    }


def prune() -> dict[str, Any]:
    return {
        "budget": "0.6x",
        "budget_ms": BUDGET_MS,
        "aim_ms": AIM_MS,
        "history": gated_history(),
        "rounds": [
            {
                "round": number,
                "attempt": 1,
                "predicted_ms": 0.8812,
                "measured_ms": measured,
                "ratio": measured / ANCHOR_MS,
                "ratio_ci95": [0.99 * measured / ANCHOR_MS, 1.01 * measured / ANCHOR_MS],
                "met": met,
            }
            for number, measured, met in ((1, 0.9241, False), (2, 0.8855, True))
        ],
        "widths": [
            {"group": g, "full": f, "kept": k} for g, f, k in zip(GROUPS, FULL, KEPT, strict=True)
        ],
    }


def group_losses() -> dict[str, Any]:
    return {
        "dense": 0.25,
        "guessing": 2.3026,
        "groups": {
            name: [{"kept": 8, "loss": 3.0}, {"kept": full // 2, "loss": 0.75}]
            for name, full in zip(GROUPS, FULL, strict=True)
        },
        "branches": {"layer1.0.bn2": 1.25},
    }


def plan_losses() -> dict[str, Any]:
    least = [8] * len(GROUPS)
    plans = [(0, 1.25, KEPT), (3, 0.875, FULL), (7, 1.25, least)]
    found = [{"variant": number, "loss": loss, "kept": kept} for number, loss, kept in plans]
    found[0]["after_steps"] = 0.5
    return {"groups": GROUPS, "plans": found}


def latency() -> dict[str, list[float]]:
    random = np.random.default_rng(1)
    return {
        name: (center * (1 + random.gamma(2.0, 0.02, n))).round(6).tolist()
        for name, center, n in (("engine", 0.86, 3960), ("dense", 1.46, 210))
    }


def trace() -> dict[str, Any]:
    groups = [
        {"name": name, "channels": full, "kind": "inner", "frozen": None, "floor": 8}
        for name, full in zip(GROUPS, FULL, strict=True)
    ]
    reason = "its channels are the classes"
    head = {"name": "fc", "channels": 10, "kind": "inner", "frozen": reason, "floor": 10}
    return {
        "macs": 40551808,
        "params": 272186,
        "floor_macs": 6120448,
        "floor_params": 41022,
        "groups": [*groups, head],
    }


def example() -> dict[str, Any]:
    """A finished run: file -> document."""
    builds = [{"seconds": 0.41, "bytes": 402117, "sha256": digit * 64} for digit in "aab"]
    return {
        "prepare/prepare.json": {
            "model": "wgates:resnet20",
            "data": "digits",
            "trained": True,
            "epochs": 16,
            "top1": {"val": {"top1": 0.9792, "n": 144}, "test": {"top1": 0.9861, "n": 360}},
            "history": history(16, first_top1=0.42),
        },
        "prepare/data_card.json": {
            "name": "digits",
            "classes": [str(digit) for digit in range(10)],
            "image_shape": [3, 32, 32],
            "mean": [0.3053, 0.3053, 0.3053],
            "std": [0.3762, 0.3762, 0.3762],
            "counts": {"train": 1293, "val": 144, "test": 360},
            "skipped": [],
            "digest": "0123456789abcdef" * 4,
            "augment": ["shift:2"],
        },
        "trace/feasibility.json": trace(),
        "calibrate/calibration.json": calibration(),
        "calibrate/precision.json": {"quantizer": "nncf", **INT8, "forms": FORMS},
        "prune/prune.json": prune(),
        "prune/group-losses.json": group_losses(),
        "prune/plan-losses.json": plan_losses(),
        "finetune/finetune.json": {
            "history": history(12, first_top1=0.88),
            "top1": {
                "pruned": {"top1": 0.8972, "n": 360},
                "finetuned": {"top1": 0.9833, "n": 360},
            },
        },
        "build/build.json": {
            "builds": builds,
            "identical": False,
            "dense_bytes": 1102311,
            "precision": {"dense": INT8, "engine": INT8 | {"kept_fp32": ["Conv_0"]}},
        },
        "verify/certificate.json": copy.deepcopy(CERTIFICATE),
        "verify/latency.json": latency(),
    }


def write_run(folder: Path, documents: Mapping[str, Any]) -> Path:
    for name, document in documents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """Cells of the tables by id, headings, every start tag, and the text outside scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self.text = ""
        self._table: list[list[str]] = []
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._inside.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault(found.get("id") or "", [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = self._inside[-1] if self._inside else ""
        if inside in ("td", "th"):
            self._table[-1][-1] += data
        elif inside == "h2":
            self.headings[-1] += data
        if not {"script", "style"} & set(self._inside):
            self.text += data


def figures(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)
    assert found is not None
    return {figure["id"]: figure for figure in json.loads(found[1])}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "resnet20-on-2-cores", example())


@pytest.fixture(scope="module")
def html(run_folder: Path) -> str:
    return render_report(run_folder)


# numbers ----------------------------------------------------------------------------------


def test_the_summary_says_what_the_certificate_says() -> None:
    rows = {label: (dense, pruned) for label, dense, pruned in summary_rows(CERTIFICATE)}
    assert rows == {
        "median latency ms, 95 % interval": ("1.511 (1.502 to 1.520)", "0.8871 (0.8832 to 0.8925)"),
        "p90 latency ms": ("1.587", "0.9312"),
        "p99 latency ms": ("–", "1.204"),
        "timed calls": ("210", "3,960"),
        "speed-up, 95 % interval": ("–", "1.704x (1.695x to 1.712x)"),
        "predicted latency ms, 95 % interval": ("–", "0.8795 (0.8533 to 0.9065)"),
        "measured above predicted %": ("–", "+0.86"),
        "top-1 %, 95 % interval": ("98.61 (96.78 to 99.41)", "98.06 (96.04 to 99.06)"),
        "parameters": ("272,186", "97,834 (35.9%)"),
        "MACs": ("40,551,808", "15,210,112 (37.5%)"),
        "engine bytes": ("1,102,311", "402,117 (36.5%)"),
        "budget ms": ("–", "0.9024 (0.6x of dense, p50)"),
        "verdict": ("–", "met"),
    }


def test_the_page_has_the_rows_of_the_summary(html: str) -> None:
    shown = Page(html).tables["summary"]
    assert [tuple(row) for row in shown[1:]] == summary_rows(CERTIFICATE)


def test_accuracy_is_attributed_step_by_step(html: str) -> None:
    rows = Page(html).tables["accuracy"][1:]
    assert [(row[0], row[1][:5], row[2]) for row in rows] == [
        ("dense", "98.61", "–"),
        ("pruned", "89.72", "−8.89"),
        ("finetuned", "98.33", "+8.61"),
        ("onnx", "98.33", "+0.00"),
        ("engine", "98.06", "−0.27"),
    ]


def test_other_tables(html: str) -> None:
    page = Page(html)
    assert page.tables["frozen"][1:] == [["fc", "10", "inner", "its channels are the classes"]]
    assert [row[-1] for row in page.tables["rounds"][1:]] == ["no", "yes"]
    assert [row[0] for row in page.tables["rounds"][1:]] == ["1.1", "2.1"]
    assert page.tables["parity"][-1] == ["labels that flipped", "1 of 360"]
    assert ["threads", "2"] in page.tables["fingerprint"]
    assert ["images", "train 1,293, val 144, test 360"] in page.tables["data"]
    for doubt in (*CERTIFICATE["doubts"], *calibration()["doubts"]):
        assert doubt in page.text


def test_what_pruning_can_reach(html: str) -> None:
    page = Page(html)
    assert page.tables["reach"][0] == ["verdict", "at most 3.33 times faster"]
    assert ["speed-up that is reachable", "3.333x"] in page.tables["reach"]
    assert ["share that no width changes %", "20.00"] in page.tables["reach"]
    assert [row[2] for row in page.tables["cliffs"][1:]] == [
        "16 channels",
        "no step of 8 or more",
        "not clear",
    ]
    assert ["time", "75.0", "75.00"] in page.tables["phases"]
    assert "it stopped because --samples 200 are measured" in page.text
    assert page.text.index(GROUPS[-1]) < page.text.index("Where calibration's")


def test_a_run_calibrated_before_reach_was_known_has_no_such_section(tmp_path: Path) -> None:
    documents = example()
    del documents["calibrate/calibration.json"]["feasibility"]
    page = Page(render_report(write_run(tmp_path, documents)))
    assert not {"reach", "cliffs", "phases"} & set(page.tables)


@pytest.mark.parametrize(
    ("verdict", "badge"),
    [("met", "met"), ("missed", "missed"), ("inconclusive", "inconclusive"), ('"><b>', "none")],
)
def test_the_badge_shows_the_verdict(tmp_path: Path, verdict: str, badge: str) -> None:
    certificate = {**CERTIFICATE, "verdict": verdict}
    page = Page(render_report(write_run(tmp_path, {"verify/certificate.json": certificate})))
    classes = [found.get("class") for tag, found in page.tags if tag == "span"]
    assert classes == [f"badge {badge}"]
    assert verdict in page.text


def test_precision_says_what_it_cost_and_what_stayed_in_fp32(html: str) -> None:
    page = Page(html)
    _, dense, engine = page.tables["precision"]
    made = "quantizer: qdq; images: 128; layers: int8 20, fp32 3"
    assert dense == ["dense", "0.42 of 144 validation images", "none", made]
    assert engine[:3] == ["engine", "0.42 of 144 validation images", "Conv_0"]
    assert page.tables["forms"][1:] == [
        ["qdq", "0.42", "1.000 (1.000 to 1.000)"],
        ["nncf (chosen)", "0.69", "0.930 (0.920 to 0.940)"],
    ]


def test_an_fp32_engine_has_no_table_of_its_precision(tmp_path: Path) -> None:
    documents = example()
    fp32 = INT8 | {"n": 0}
    documents["build/build.json"]["precision"] = {"dense": fp32, "engine": fp32}
    documents["calibrate/precision.json"]["forms"] = FORMS[:1]
    page = Page(render_report(write_run(tmp_path, documents)))
    assert not {"precision", "forms"} & set(page.tables)


def test_a_prediction_may_be_absent() -> None:
    certificate = copy.deepcopy(CERTIFICATE)
    del certificate["latency_ms"]["predicted"]
    rows = {label: pruned for label, _, pruned in summary_rows(certificate)}
    assert rows["measured above predicted %"] == "–"


# figures ----------------------------------------------------------------------------------


def test_every_figure_has_its_place_and_its_words(html: str) -> None:
    places = {
        str(found["id"]): found.get("aria-label")
        for tag, found in Page(html).tags
        if tag == "div" and found.get("class") == "plot"
    }
    expected = {"latency", "widths", "scatter", "training-dense", "training-gates", "gate-health"}
    expected |= {"training-finetune", "cliffs", "curve", "group-losses"}
    expected |= {"plan-losses"}
    assert set(places) == set(figures(html)) == expected
    assert all(places.values())


def test_the_curve_and_the_cliffs_show_percent(html: str) -> None:
    active, random = figures(html)["curve"]["traces"]
    assert (active["name"], random["name"]) == ("active", "random")
    assert (active["x"], active["y"], random["y"]) == ([32, 150], [4.0, 1.5], [4.0, 2.0])
    first = figures(html)["cliffs"]["traces"][0]
    assert (first["x"], first["y"]) == ([0, 8, 16], [100.0, 99.9, 96.9])
    assert first["error_y"]["array"] == [0.5, 0.6, 0.5]


def test_the_scatter_shows_held_out_networks_in_ms(html: str) -> None:
    band, equal, points = figures(html)["scatter"]["traces"]
    first = calibration()["scatter"][0]
    assert points["x"][0] == pytest.approx(first["predicted"] * ANCHOR_MS, rel=1e-4)
    assert points["y"][0] == pytest.approx(first["measured"] * ANCHOR_MS, rel=1e-4)
    assert points["error_y"]["array"][0] == pytest.approx(0.01 * points["y"][0], rel=1e-3)
    assert len(points["x"]) == 200
    assert equal["x"] == equal["y"]
    ratios = [y / x for x, y in zip(band["x"], band["y"], strict=True)]
    assert ratios == pytest.approx([1.05, 1.05, 0.95, 0.95], rel=1e-4)


def test_the_widths_are_those_of_the_plan(html: str) -> None:
    dense, kept = figures(html)["widths"]["traces"]
    assert dense["y"] == kept["y"] == GROUPS
    assert (dense["x"], kept["x"]) == (FULL, KEPT)


def test_the_losses_are_those_of_each_group_narrowed_and_of_its_branch_gone(tmp_path: Path) -> None:
    documents = example()
    branch = {"name": "layer1.0.bn2", "groups": [GROUPS[0]]}
    documents["trace/feasibility.json"]["branches"] = [branch]
    narrowed, gone = figures(render_report(write_run(tmp_path, documents)))["group-losses"][
        "traces"
    ]
    assert narrowed["y"] == [name for name in GROUPS for _ in range(2)]
    assert narrowed["x"][:2] == pytest.approx([2.0526, 0.5]), "no more than by guessing"
    assert narrowed["text"][:2] == ["8 of 16 channels"] * 2
    assert narrowed["marker"]["color"][-1] == 50
    assert (gone["y"], gone["x"]) == ([GROUPS[0]], [1.0])


def test_a_run_whose_method_asked_for_no_losses_has_none(tmp_path: Path) -> None:
    documents = example()
    del documents["prune/group-losses.json"], documents["prune/plan-losses.json"]
    shown = figures(render_report(write_run(tmp_path, documents)))
    assert not {"group-losses", "plan-losses"} & shown.keys()


def test_whole_plans_are_shown_from_the_least_loss_on(html: str, tmp_path: Path) -> None:
    (heat,) = figures(html)["plan-losses"]["traces"]
    assert heat["y"] == ["1: 0.875", "2: 1.250 → 0.500 (single)", "3: 1.250"]
    assert heat["x"] == GROUPS
    assert heat["z"][0] == [100] * len(GROUPS)
    assert heat["text"][1] == [f"{k} of {f} channels" for k, f in zip(KEPT, FULL, strict=True)]
    documents = example()
    documents["prune/plan-losses.json"]["plans"] = []  # none had a loss that is a number
    assert "plan-losses" not in figures(render_report(write_run(tmp_path, documents)))


def test_a_few_epochs_have_a_tick_each_and_none_between(tmp_path: Path) -> None:
    documents = example()
    documents["finetune/finetune.json"]["history"] = history(3, first_top1=0.88)
    shown = figures(render_report(write_run(tmp_path, documents)))
    few, many = (shown[f"training-{name}"]["layout"]["xaxis"] for name in ("finetune", "dense"))
    assert (few["dtick"], few["range"]) == (1, [0.5, 3.5])
    assert "dtick" not in many


def test_the_gates_are_shown_against_the_budget(html: str) -> None:
    _, predicted, budget, aim = figures(html)["training-gates"]["traces"]
    assert predicted["y"][6:] == [None, None]
    assert predicted["y"][0] > BUDGET_MS > predicted["y"][5]
    assert set(budget["y"]) == {BUDGET_MS}
    assert set(aim["y"]) == {AIM_MS}
    assert predicted["yaxis"] == budget["yaxis"] == aim["yaxis"] == "y2"


def test_gates_say_how_many_are_open_can_learn_and_flip(html: str) -> None:
    opened, live, flipped = figures(html)["gate-health"]["traces"]
    assert opened["x"] == [1, 2, 3, 4, 5, 6]  # masks are fixed in the last two
    assert opened["y"] == pytest.approx([100, 90, 80, 70, 60, 50])
    assert set(live["y"]) == {98}
    assert set(flipped["y"]) == {3}
    assert gate_health({"history": history(3, first_top1=0.5)}) is None


@pytest.mark.parametrize(("objective", "label"), [("flops", "MACs"), ("params", "parameters")])
def test_a_budget_that_is_a_count_is_shown_as_one(objective: str, label: str) -> None:
    counted = {"objective": objective, "budget_count": 24_331_084, "budget_ms": None}
    certificate = {**CERTIFICATE, **counted}
    assert (f"budget {label}", "–", "24,331,084 (0.6x of dense)") in summary_rows(certificate)
    assert all(row[0] != "budget ms" for row in summary_rows(certificate))
    stated = headline(Documents(verify=certificate))[0][1]
    assert stated == f"median latency; budget 24,331,084 {label}"


def test_gates_under_a_count_are_shown_against_it() -> None:
    document = prune() | {"objective": "flops", "budget_count": 24_331_084}
    del document["budget_ms"], document["aim_ms"]
    figure = gates(document)
    assert [trace["name"] for trace in figure.traces] == ["validation top-1", "MACs", "budget"]
    assert figure.traces[2]["y"] == pytest.approx([24_331_084] * 8, rel=1e-5)
    assert figure.layout["yaxis2"]["title"]["text"] == "MACs"


def test_every_latency_sample_is_in_a_bin(html: str) -> None:
    figure = figures(html)["latency"]
    for bars in figure["traces"]:
        assert sum(bars["y"]) == pytest.approx(100, abs=0.01)
    (line,) = figure["layout"]["shapes"]
    assert line["x0"] == line["x1"] == BUDGET_MS


def test_identical_latencies_still_make_a_histogram(tmp_path: Path) -> None:
    samples = {"engine": [1.0] * 5, "dense": [1.0] * 5}
    page = render_report(write_run(tmp_path, {"verify/latency.json": samples}))
    assert sum(figures(page)["latency"]["traces"][0]["y"]) == pytest.approx(100)


# nothing is loaded, nothing is injected ---------------------------------------------------


def test_the_page_loads_nothing(html: str) -> None:
    tags = Page(html).tags
    assert not [found for _, found in tags if {"src", "href", "action", "data"} & set(found)]
    assert not {"link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in tags}
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [found["content"] for _, found in tags if found.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_plotly_is_inlined_once(html: str) -> None:
    assert html.count("Licensed under the MIT license\n*/") == 1
    assert len([tag for tag, _ in Page(html).tags if tag == "script"]) == 3


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7*7 }}"


def hostile() -> dict[str, Any]:
    documents = example()
    documents["prepare/data_card.json"] |= {"classes": [HOSTILE], "name": HOSTILE}
    documents["prune/prune.json"]["widths"][0]["group"] = HOSTILE
    losses = documents["prune/group-losses.json"]["groups"]
    losses[HOSTILE] = losses.pop(GROUPS[0])
    documents["prune/plan-losses.json"]["groups"] = [HOSTILE, *GROUPS[1:]]
    documents["calibrate/calibration.json"]["cliffs"][0]["group"] = HOSTILE
    documents["trace/feasibility.json"]["groups"][-1] |= {"name": HOSTILE, "frozen": HOSTILE}
    documents["verify/certificate.json"] |= {"model": HOSTILE, "doubts": [HOSTILE]}
    documents["verify/certificate.json"]["fingerprint"] = {"device": HOSTILE}
    return documents


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    attacked = render_report(write_run(tmp_path, hostile()))
    page = Page(attacked)
    assert "img" not in {tag for tag, _ in page.tags}
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 3
    assert not [found for _, found in page.tags if "onerror" in found]
    assert page.text.count(HOSTILE) == 8
    # plotly itself reads tags in labels, so what it gets is escaped as well
    assert figures(attacked)["widths"]["traces"][0]["y"][0].startswith("&lt;/script&gt;")
    assert figures(attacked)["cliffs"]["traces"][0]["name"].startswith("&lt;/script&gt;")
    assert figures(attacked)["group-losses"]["traces"][0]["y"][-1].startswith("&lt;/script&gt;")
    assert figures(attacked)["plan-losses"]["traces"][0]["x"][0].startswith("&lt;/script&gt;")


# partial and damaged runs -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "headings"),
    [
        (("prepare",), ["Where accuracy went", "Training", "Data"]),
        (("trace",), ["Widths"]),
        (("prepare", "trace"), ["Where accuracy went", "Widths", "Training", "Data"]),
        (
            ("calibrate",),
            [
                "Doubts",
                "Predicted and measured latency",
                "Reach on the target",
                "Engine",
                "Fingerprint",
            ],
        ),
        (("prune",), ["Widths", "Predicted and measured latency", "Training"]),
        (("finetune",), ["Where accuracy went", "Training"]),
        (("build",), ["Engine"]),
    ],
)
def test_a_partial_run_shows_what_is_there(
    tmp_path: Path, stages: tuple[str, ...], headings: list[str]
) -> None:
    chosen = {name: d for name, d in example().items() if name.split("/")[0] in stages}
    page = Page(render_report(write_run(tmp_path, chosen)))
    assert page.headings == headings
    assert "not verified yet" in page.text
    missing = re.search(r"Not run yet: ([\w, ]+)\.", page.text)
    assert missing is not None
    assert set(missing[1].split(", ")).isdisjoint(stages)
    assert "verify" in missing[1]


def test_a_finished_run_misses_nothing(html: str) -> None:
    assert "Not run yet" not in html


def test_a_run_with_given_weights_has_no_dense_curve(tmp_path: Path) -> None:
    documents = example()
    documents["prepare/prepare.json"] |= {"history": [], "trained": False, "epochs": 0}
    shown = figures(render_report(write_run(tmp_path, documents)))
    assert "training-dense" not in shown
    assert "training-finetune" in shown


def test_no_results_name_the_command_to_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingInputError) as caught:
            render_report(folder)
        assert "pipeline prepare" in caught.value.fix


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\ufeff{}"])
def test_a_damaged_document_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    write_run(tmp_path, example())
    (tmp_path / "prune" / "prune.json").write_text(text, encoding="utf-8")
    with pytest.raises(DeployError, match=r"prune/prune\.json is damaged"):
        render_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("verify/certificate.json", {"schema": 1}),
        ("calibrate/calibration.json", {**calibration(), "scatter": [{"predicted": 1.0}]}),
        ("prune/prune.json", {**prune(), "widths": [5]}),
        ("finetune/finetune.json", {"history": 5, "top1": 3}),
    ],
)
def test_a_document_of_another_form_is_an_error(
    tmp_path: Path, name: str, document: object
) -> None:
    with pytest.raises(DeployError, match="damaged"):
        render_report(write_run(tmp_path, {**example(), name: document}))
