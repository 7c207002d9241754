"""What the page of a run shows and in which order."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.report import evidence, plots, reach, structure, tables
from pipeline.report.content import Identity, Page, Section, tables_of
from pipeline.report.documents import Documents
from pipeline.report.group_losses import group_losses, plan_losses
from pipeline.report.numbers import count, ms, percent, points, times
from pipeline.report.plots import Figure

VERDICTS = ("met", "missed", "inconclusive")


def run_page(documents: Documents, name: str, *, whole: bool = True) -> Page:
    """The page of a run; of its certificate alone if not `whole`, where no stage is missed."""
    return Page(
        "wgates report",
        identity(documents, name),
        headline(documents),
        sections(documents),
        documents.missing_stages() if whole else (),
    )


def identity(documents: Documents, name: str) -> Identity:
    verdict = documents.first("verdict")
    labels = ("model", "data", "target", "budget")
    values = ((label, documents.first(label)) for label in labels)
    facts = tuple((label, str(value)) for label, value in values if value is not None)
    if verdict is None:
        return Identity(name, facts, "not verified yet", "none")
    return Identity(name, facts, *budget_words(verdict))


def budget_words(verdict: object) -> tuple[str, str]:
    """A certificate's verdict as a badge says it, and the badge's CSS class."""
    badge = str(verdict) if verdict in VERDICTS else "none"
    return (f"budget {verdict}" if badge != "none" else str(verdict)), badge


def headline(documents: Documents) -> tuple[tuple[str, str], ...]:
    """(value, label) of the numbers that one looks for first."""
    certificate = documents.verify
    if certificate is None:
        return ()
    latency, accuracy = certificate["latency_ms"], certificate["accuracy"]
    change = accuracy["engine"]["top1"] - accuracy["dense"]["top1"]
    objective = certificate.get("objective", "latency")
    if objective == "latency":
        budget = f"{certificate['percentile']} budget {ms(certificate['budget_ms'])} ms"
    else:
        budget = f"budget {count(certificate['budget_count'])} {tables.COUNTED[objective]}"
    return (
        (f"{ms(latency['engine']['p50'])} ms", f"median latency; {budget}"),
        (times(certificate["speedup"]["median"]), "faster than the dense engine"),
        (f"{percent(accuracy['engine']['top1'])} %", f"top-1; {points(change)} points to dense"),
    )


def sections(documents: Documents) -> tuple[Section, ...]:
    """Every section that has something to show."""
    made = (
        Section("Summary", tables=tables_of(documents.verify and tables.summary(documents.verify))),
        _doubts(documents),
        _accuracy(documents),
        _latency(documents),
        _serving(documents),
        _widths(documents),
        _prediction(documents),
        _reach(documents),
        Section("Training", figures=tuple(_training(documents))),
        _numerics(documents),
        Section(
            "Data", tables=tables_of(documents.data_card and tables.data_card(documents.data_card))
        ),
        _fingerprint(documents),
    )
    return tuple(section for section in made if section.has_content)


def _doubts(documents: Documents) -> Section:
    stages = (("calibration", documents.calibrate), ("verification", documents.verify))
    known = [(name, document["doubts"]) for name, document in stages if document is not None]
    lines = tuple(f"{name}: {doubt}" for name, doubts in known for doubt in doubts)
    return Section("Doubts", lines=lines or (("none recorded",) if known else ()))


def _accuracy(documents: Documents) -> Section:
    certificate, flips = documents.verify, documents.flips
    found = tables_of(
        tables.accuracy_steps(documents), certificate and evidence.attribution(certificate)
    )
    galleries = tuple(evidence.flips(flips)) if flips else ()
    return Section("Where accuracy went", tables=found, galleries=galleries)


def _serving(documents: Documents) -> Section:
    certificate = documents.verify or {}
    found = tables_of(evidence.counterfactual(certificate), evidence.footprint(certificate))
    return Section("Beside the verdict", tables=found)


def _latency(documents: Documents) -> Section:
    samples = documents.latency
    if samples is None or not (samples["dense"] and samples["engine"]):
        return Section("Latency")
    return Section("Latency", figures=(plots.latency(samples, documents.first("budget_ms")),))


def _widths(documents: Documents) -> Section:
    trace, prune = documents.trace, documents.prune
    figures: list[Figure] = []
    if prune is not None and prune["widths"]:
        figures.append(plots.widths(prune))
        if documents.losses is not None and trace is not None:
            figures.append(group_losses(documents.losses, trace, prune))
        if documents.plan_losses is not None and documents.plan_losses["plans"]:
            figures.append(plan_losses(documents.plan_losses, prune))
    if trace is None:
        return Section("Widths", figures=tuple(figures))
    found = tables_of(
        structure.feasibility(trace),
        structure.branches(trace, prune),
        structure.frozen_groups(trace),
    )
    return Section("Widths", figures=tuple(figures), tables=found)


def _prediction(documents: Documents) -> Section:
    calibration, prune = documents.calibrate, documents.prune
    return Section(
        "Predicted and measured latency",
        figures=(plots.scatter(calibration),) if calibration and calibration["scatter"] else (),
        tables=tables_of(
            calibration and tables.held_out(calibration), prune and tables.rounds(prune)
        ),
    )


def _reach(documents: Documents) -> Section:
    found = documents.calibrate
    if found is None or "feasibility" not in found:  # calibrated by an older version
        return Section("Reach on the target")
    figures = (reach.cliff_figure(found), reach.curve_figure(found))
    return Section(
        "Reach on the target",
        figures=tuple(figure for figure in figures if figure is not None),
        tables=tables_of(
            reach.reach(found), reach.groups(found), reach.cliffs(found), reach.phases(found)
        ),
    )


def _training(documents: Documents) -> Iterator[Figure]:
    prepare, prune, finetune = documents.prepare, documents.prune, documents.finetune
    if prepare is not None and prepare["history"]:
        yield plots.training("dense", prepare["history"])
    if prune is not None and prune["history"]:
        yield plots.gates(prune)
        if (health := plots.gate_health(prune)) is not None:
            yield health
    if finetune is not None and finetune["history"]:
        yield plots.training("finetune", finetune["history"])


def _numerics(documents: Documents) -> Section:
    certificate, build = documents.verify, documents.build
    settled = documents.precision
    found = tables_of(
        certificate and tables.parity(certificate),
        build and tables.precision(build),
        settled and tables.forms(settled),
        build and tables.builds({**build, **(certificate or {}).get("build", {})}),
    )
    return Section("Engine", tables=found)


def _fingerprint(documents: Documents) -> Section:
    found = documents.first("fingerprint")
    return Section("Fingerprint", tables=(tables.fingerprint(found),) if found else ())
