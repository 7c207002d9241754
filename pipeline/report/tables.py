"""Tables of the report: text in cells, already formatted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.documents import Document, Documents
from pipeline.report.numbers import (
    ABSENT,
    count,
    ms,
    of_dense,
    percent,
    points,
    small,
    times,
    with_interval,
    yes,
)

Row = tuple[str, ...]
STEPS = ("dense", "pruned", "finetuned", "onnx", "engine")
CLASSES_SHOWN = 20
PHONE_COLUMNS, PHONE_CELL = 3, 48  # more columns, or characters, do not fit on a phone
COUNTED = {"flops": "MACs", "params": "parameters"}  # what an objective counts


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each names it. No columns: no head."""

    caption: str
    columns: Row
    rows: tuple[Row, ...]
    id: str = ""

    @property
    def is_wide(self) -> bool:
        """Whether its rows are drawn as cards on a phone."""
        longest = max((len(cell) for row in self.rows for cell in row), default=0)
        wide = len(self.columns) > PHONE_COLUMNS
        return wide or (len(self.columns) == PHONE_COLUMNS and longest > PHONE_CELL)


def summary_rows(certificate: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(label, dense, pruned) for every claim of a certificate; page and terminal show these."""
    accuracy = certificate["accuracy"]
    return [
        *_latency_rows(certificate["latency_ms"]),
        ("speed-up, 95 % interval", ABSENT, _interval(certificate["speedup"], "median", times)),
        *_prediction_rows(certificate["latency_ms"]),
        (
            "top-1 %, 95 % interval",
            _interval(accuracy["dense"], "top1", percent),
            _interval(accuracy["engine"], "top1", percent),
        ),
        *(
            (label, count(sizes["dense"]), of_dense(sizes["pruned"], sizes["dense"]))
            for label, sizes in (
                ("parameters", certificate["params"]),
                ("MACs", certificate["macs"]),
                ("engine bytes", certificate["engine_bytes"]),
            )
        ),
        _budget(certificate),
        ("verdict", ABSENT, str(certificate["verdict"])),
    ]


def _latency_rows(latency: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    dense, engine = latency["dense"], latency["engine"]
    yield (
        "median latency ms, 95 % interval",
        _interval(dense, "p50", ms),
        _interval(engine, "p50", ms),
    )
    for key in ("p90", "p99"):
        yield f"{key} latency ms", ms(dense.get(key)), ms(engine.get(key))
    yield "timed calls", count(dense["samples"]), count(engine["samples"])


def _prediction_rows(latency: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    predicted = latency.get("predicted") or {}
    yield "predicted latency ms, 95 % interval", ABSENT, _interval(predicted, "p50", ms)
    ours, measured = predicted.get("p50"), latency["engine"]["p50"]
    error = f"{points(measured / ours - 1)}" if ours else ABSENT
    yield "measured above predicted %", ABSENT, error


def _interval(numbers: Mapping[str, Any], key: str, form: Any) -> str:
    return with_interval(numbers.get(key), numbers.get("ci95"), form)


def _budget(certificate: Mapping[str, Any]) -> tuple[str, str, str]:
    """A certificate from before there were other objectives bounds the latency."""
    stated, objective = str(certificate["budget"]), certificate.get("objective", "latency")
    of = f"{stated} of dense" if stated.endswith("x") else ""
    if objective == "latency":
        said = ", ".join(filter(None, (of, certificate["percentile"])))
        return "budget ms", ABSENT, f"{ms(certificate['budget_ms'])} ({said})"
    said = f" ({of})" if of else ""
    return f"budget {COUNTED[objective]}", ABSENT, f"{count(certificate['budget_count'])}{said}"


def summary(certificate: Document) -> Table:
    rows = tuple(summary_rows(certificate))
    return Table("", ("", "dense", "pruned"), rows, id="summary")


def accuracy_steps(documents: Documents) -> Table | None:
    """Top-1 from the dense network to the engine: where accuracy was lost and won back."""
    shares = _known_accuracy(documents)
    rows: list[Row] = []
    before: float | None = None
    for step in STEPS:
        if step in shares:
            share = shares[step]
            change = None if before is None else share["top1"] - before
            value = _interval(share, "top1", percent)
            rows.append((step, value, points(change), count(share["n"])))
            before = share["top1"]
    columns = ("network", "top-1 %, 95 % interval", "change, points", "test images")
    return Table("", columns, tuple(rows), id="accuracy") if rows else None


def _known_accuracy(documents: Documents) -> Document:
    if documents.verify is not None:
        return dict(documents.verify["accuracy"])
    known: Document = {}
    if documents.prepare is not None:
        known["dense"] = documents.prepare["top1"]["test"]
    if documents.finetune is not None:
        known |= documents.finetune["top1"]
    return known


def held_out(calibration: Document) -> Table:
    """The error of the LPNet on networks that it was not fitted on."""
    error = calibration["held_out"]
    rows = (
        ("networks measured", count(error["records"])),
        ("mean error %", percent(error["mean"])),
        ("90 % of errors below %", percent(error["p90"])),
        ("share within 5 %, %", percent(error["within_5"])),
        ("share within 10 %, %", percent(error["within_10"])),
        ("rank correlation", f"{error['spearman']:.4f}"),
        ("half 90 % interval %", percent(error["interval_90"])),
        ("dense latency ms", ms(calibration["anchor_ms"])),
        ("narrowest latency ms", _floor(calibration["floor"])),
    )
    return Table("Held-out error of the latency prediction", (), rows)


def _floor(floor: Document) -> str:
    return f"{ms(floor['ms'])} ({times(floor['ratio'])} of dense)"


def rounds(prune: Document) -> Table | None:
    rows = tuple(
        (
            f"{item['round']}.{item['attempt']}",
            ms(item["predicted_ms"]),
            ms(item["measured_ms"]),
            with_interval(item["ratio"], item["ratio_ci95"], lambda value: f"{value:.3f}"),
            yes(item["met"]),
        )
        for item in prune["rounds"]
    )
    columns = ("attempt", "predicted ms", "measured ms", "share of dense, 95 % interval", "met")
    return Table("Closed loop", columns, rows, id="rounds") if rows else None


def parity(certificate: Document) -> Table:
    found = certificate["parity"]
    rows = (
        ("largest difference of logits", small(found["max_abs"])),
        ("relative to the largest logit", small(found["max_rel"])),
        ("labels that flipped", f"{count(found['label_flips'])} of {count(found['n'])}"),
    )
    return Table("Engine against PyTorch", (), rows, id="parity")


def precision(build: Document) -> Table | None:
    """What the precision costs and what stayed in fp32; None for an fp32 engine."""
    rows: list[Row] = []
    for name in ("dense", "engine"):
        found = build["precision"][name]
        if found["n"]:
            kept = ", ".join(found["kept_fp32"]) or "none"
            lost = f"{percent(found['top1_loss'])} of {count(found['n'])} validation images"
            rows.append((name, lost, kept, _facts(found["facts"])))
    columns = ("engine", "top-1 lost, points", "nodes kept in fp32", "how it was made")
    return Table("Precision", columns, tuple(rows), id="precision") if rows else None


def _facts(facts: Mapping[str, Any]) -> str:
    return "; ".join(f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in facts.items())


def forms(settled: Document) -> Table | None:
    """The int8 forms that were measured on the dense network before one was chosen."""
    if len(settled["forms"]) < 2:
        return None
    rows = tuple(
        (
            item["quantizer"] + (" (chosen)" if item["quantizer"] == settled["quantizer"] else ""),
            percent(item["top1_loss"]),
            with_interval(item["ratio"], item["ratio_ci95"], lambda value: f"{value:.3f}"),
        )
        for item in settled["forms"]
    )
    columns = ("int8 form", "top-1 lost, points", "latency against the first, 95 % interval")
    return Table("Forms of int8 on the dense network", columns, rows, id="forms")


def builds(build: Document) -> Table:
    rows = tuple(
        (
            str(number),
            f"{item['seconds']:.1f}",
            count(item["bytes"]),
            item["sha256"][:16],
            _against_first(item.get("ratio")),
        )
        for number, item in enumerate(build["builds"], 1)
    )
    same = "identical" if build["identical"] else "not identical"
    columns = ("build", "seconds", "bytes", "SHA-256", "latency against the shipped one")
    return Table(f"Builds: {same}", columns, rows)


def _against_first(ratio: Mapping[str, Any] | None) -> str:
    return ABSENT if ratio is None else _interval(ratio, "median", times)


def data_card(card: Document) -> Table:
    classes, skipped = card["classes"], card["skipped"]
    more = ["…"] if len(classes) > CLASSES_SHOWN else []
    rows = (
        ("name", card["name"]),
        ("image shape (C, H, W)", " × ".join(map(str, card["image_shape"]))),
        ("images", ", ".join(f"{split} {count(n)}" for split, n in card["counts"].items())),
        (f"{len(classes)} classes", ", ".join([*map(str, classes[:CLASSES_SHOWN]), *more])),
        ("mean per channel", ", ".join(f"{value:.4f}" for value in card["mean"])),
        ("standard deviation per channel", ", ".join(f"{value:.4f}" for value in card["std"])),
        ("training augmentations", ", ".join(card["augment"]) or "none"),
        ("corrupt images skipped", count(len(skipped))),
        ("SHA-256", card["digest"]),
    )
    return Table("", (), rows, id="data")


def fingerprint(document: Document) -> Table:
    rows = tuple((name.replace("_", " "), _plain(value)) for name, value in document.items())
    return Table("", (), rows, id="fingerprint")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return "none" if value in (None, "") else str(value)
