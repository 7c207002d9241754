"""The README's table of accuracy at equal measured latency."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from typing import Any

from benchmarks.accuracy_arms import ABLATIONS, SELECTED
from benchmarks.common import machines

OURS = "wgates"
DENSE = "dense, same training"
Arms = dict[str, list[dict[str, Any]]]  # arm -> its outcome for each seed


def accuracy(result: dict[str, Any]) -> str:
    """One table a network: arms in rows, budgets in columns; then who is ahead by how much."""
    return "\n".join([_protocol(result["protocol"]["form"]), *_tables(result), ""])


def variants(result: dict[str, Any]) -> str:
    """Tables of a study of W-Gates' own variants, in which no block may go."""
    form = result["protocol"]["form"]
    epochs = form["gate_epochs"] + form["finetune_epochs"]
    head = (
        "W-Gates with one thing changed in each row. No block may go and a channel counts for one "
        f"(`--worth count`), so that most groups have filters to choose; {epochs} epochs an arm, "
        f"{form['finetune_epochs']} of them after pruning, in fp32; all else as above."
    )
    return "\n".join([head, *_tables(result), ""])


def _tables(result: dict[str, Any]) -> Iterator[str]:
    for network in result["protocol"]["form"]["networks"]:
        named = result["studies"].items()
        seeds = [study for name, study in named if name.startswith(f"{network}-seed")]
        yield from ("", *_table(network, seeds), "", *_remarks(seeds))


def _protocol(form: dict[str, Any]) -> str:
    gated, epochs = form["gate_epochs"], form["gate_epochs"] + form["finetune_epochs"]
    return (
        f"CIFAR-10 as JPEG, `ort-cpu`, one thread; padding shortcuts, so that widths inside of "
        f"residual blocks and whole blocks can go. {form['images']:,} training images, "
        f"{form['adapt_epochs']} epochs to adapt the given weights, then {epochs} for each arm, "
        f"same images, the dense one's too: W-Gates prunes after {gated} of them, the others "
        "before the first. Selected on validation (images that the given weights have seen), "
        "reported on test. l1, group-norm and bn-scale: LPNet, losses, selection and closed loop "
        "as for W-Gates, with that score in the gates' place. tp: torch-pruning's own pruners, "
        "scores ranked across layers; they, uniform and random thin layers and remove no blocks. "
        "Before W-Gates' widths are chosen, a few plans are trained for some steps "
        "(`--worth-steps`) beside these epochs, and not kept; without "
        "steps: the loss before any training decides. "
        "Cells: top-1 % and the measured latency, all engines of a budget beside each other."
    )


def _table(network: str, seeds: list[dict[str, Any]]) -> Iterator[str]:
    budgets = list(seeds[0]["budgets"])
    yield f"| {network} | {' | '.join(budgets)} |"
    yield "|---" * (1 + len(budgets)) + "|"
    dense = _top1([study["dense"] for study in seeds])
    yield f"| {DENSE} | {' | '.join([dense] * len(budgets))} |"
    of = {budget: _arms(seeds, budget) for budget in budgets}
    for name in dict.fromkeys(name for arms in of.values() for name in arms):
        yield f"| {name} | {' | '.join(_cell(of[budget].get(name, [])) for budget in budgets)} |"


def _arms(seeds: list[dict[str, Any]], budget: str) -> Arms:
    names = dict.fromkeys(name for study in seeds for name in study["budgets"][budget])
    return {name: [study["budgets"][budget][name] for study in seeds] for name in names}


def _cell(outcomes: list[dict[str, Any]]) -> str:
    """Of one arm at one budget, all seeds; an arm that could not meet it says so."""
    done = [item for item in outcomes if "complaint" not in item]
    if not done:
        return "no plan met it" if outcomes else "–"
    ratio = mean(item["ratio_to_dense"] for item in done)
    missed = len(outcomes) - len(done)
    return f"{_top1(done)} at {ratio:.3f}x{f'; {missed} missed it' if missed else ''}"


def _top1(outcomes: list[dict[str, Any]]) -> str:
    """The mean over seeds and their range; of one seed its 95 % interval over the images."""
    tops = [100 * item["test"]["top1"] for item in outcomes]
    found = f"{mean(tops):.2f}"
    if len(tops) > 1:
        return f"{found} ({min(tops):.2f} to {max(tops):.2f})"
    if "ci95" in outcomes[0]["test"]:
        low, high = outcomes[0]["test"]["ci95"]
        return f"{found} ({100 * low:.2f} to {100 * high:.2f})"
    return found


def _remarks(seeds: list[dict[str, Any]]) -> Iterator[str]:
    """Who is ahead by how much; of several variants only how far they lie apart."""
    dense = mean(100 * study["dense"]["test"]["top1"] for study in seeds)
    for budget in seeds[0]["budgets"]:
        tops = {
            name: mean(100 * item["test"]["top1"] for item in outcomes)
            for name, outcomes in _arms(seeds, budget).items()
            if not any("complaint" in item for item in outcomes)
        }
        others = {name: top for name, top in tops.items() if name not in {OURS, *ABLATIONS}}
        if OURS not in tops:
            continue
        apart = {name: top for name, top in others.items() if name not in SELECTED}
        beside = _best("baseline", others) | _best("without this selection", apart)
        ablated = {name: top for name, top in tops.items() if name in ABLATIONS}
        ours = {name: top for name, top in ablated.items() if name.startswith(OURS)}
        beside |= {} if len(ours) > 1 else ablated
        beside["dense"] = dense
        leads = [f"{_points(tops[OURS] - top)} {name}" for name, top in beside.items()]
        apart_by = _apart(ours) if len(ours) > 1 else ""
        yield f"- {budget}: W-Gates is {', '.join(leads)}.{_alike(seeds, budget)}{apart_by}"
    arms = [set(_arms(seeds, budget)) for budget in seeds[0]["budgets"]]
    if any(found != arms[0] for found in arms):
        yield "- –: not trained."
    devices = {budget: made["device"] for budget, made in seeds[0]["made"].items()}
    yield f"- Trained and measured on {machines(devices)}."
    brackets = "the seeds' range" if len(seeds) > 1 else "95 % of the test images, not of seeds"
    yield f"- Seeds: {len(seeds)}; in brackets {brackets}."


def _best(kind: str, tops: dict[str, float]) -> dict[str, float]:
    """The best arm, under a name that says of which kind it is; nothing if there is none."""
    best = max(tops, key=lambda name: tops[name], default=None)
    return {} if best is None else {f"the best {kind} ({best})": tops[best]}


def _apart(tops: dict[str, float]) -> str:
    worst, best = (end(tops, key=lambda name: tops[name]) for end in (min, max))
    return f" The variants go from {tops[worst]:.2f} ({worst}) to {tops[best]:.2f} ({best})."


def _alike(seeds: list[dict[str, Any]], budget: str) -> str:
    """Which arms came to W-Gates' own widths, with every seed: only their channels differ."""
    widths = {
        name: [[width["kept"] for width in item.get("widths", [])] for item in outcomes]
        for name, outcomes in _arms(seeds, budget).items()
    }
    same = [
        name
        for name, found in widths.items()
        if name != OURS and all(found) and found == widths[OURS]
    ]
    if not same:
        return ""
    ours = [item["widths"] for item in _arms(seeds, budget)[OURS]]
    return f" It keeps as many channels of every group as {', '.join(same)}.{_left_to_scores(ours)}"


def _left_to_scores(plans: list[list[dict[str, Any]]]) -> str:
    """Of how many groups filters had to be chosen; of one that is whole or gone there are none."""
    narrowed = max(sum(0 < width["kept"] < width["full"] for width in widths) for widths in plans)
    if not narrowed:
        return " All groups are whole or gone, so that no score has a channel to choose."
    return f" Scores have the channels of {narrowed} of {len(plans[0])} groups to choose."


def _points(lead: float) -> str:
    return f"{abs(lead):.2f} points {'ahead of' if lead > 0 else 'behind'}"
