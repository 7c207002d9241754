"""The table of accuracy at equal measured latency."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from typing import Any

from benchmarks.accuracy_arms import ABLATIONS, SELECTED
from benchmarks.common import machines

OURS = "wgates"
DENSE = "dense, same training"
Study = dict[str, Any]  # of one seed
Arms = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> its outcome
FEW = 2  # variants, which are told one by one
Leads = dict[str, list[float]]  # arm -> points of top-1 %, for each seed that both have


def accuracy(result: dict[str, Any]) -> str:
    """One table a network: arms in rows, budgets in columns; then who is ahead by how much."""
    return "\n".join([_protocol(result), *_tables(result), ""])


def variants(result: dict[str, Any]) -> str:
    """Tables of a study of W-Gates' own variants, in which no block may go."""
    form = result["protocol"]["form"]
    head = (
        "W-Gates, and variants with one thing changed. No block may go, so that more groups have "
        f"filters to choose; {_epochs(form)} epochs an arm, {form['finetune_epochs']} of them "
        f"after W-Gates' pruning, in `{result['protocol']['train_precision']}`; "
        "all else as above."
    )
    return "\n".join([head, *_tables(result), ""])


def longer(result: dict[str, Any]) -> str:
    """Tables of a study with the epochs of the defaults."""
    form = result["protocol"]["form"]
    head = (
        f"With the epochs of the defaults, {form['gate_epochs']} with gates and "
        f"{form['finetune_epochs']} of fine-tuning, "
        f"{_epochs(form)} for each arm, and the dense one; "
        "all else as above."
    )
    return "\n".join([head, *_tables(result), ""])


def _epochs(form: dict[str, Any]) -> int:
    """Of an arm, after the given weights were adapted."""
    return int(form["gate_epochs"] + form["finetune_epochs"])


def _tables(result: dict[str, Any]) -> Iterator[str]:
    for network, seeds in _by_network(result):
        yield from ("", *_table(network, seeds), "", *_remarks(seeds))


def _by_network(result: dict[str, Any]) -> Iterator[tuple[str, list[Study]]]:
    """Each network with its studies, one a seed."""
    for network in result["protocol"]["form"]["networks"]:
        named = result["studies"].items()
        yield network, [study for name, study in named if name.startswith(f"{network}-seed")]


def _protocol(result: dict[str, Any]) -> str:
    protocol, steps = result["protocol"], _worth_steps(result)
    form, precision = protocol["form"], protocol["train_precision"]
    gated, epochs = form["gate_epochs"], _epochs(form)
    return (
        f"CIFAR-10 as JPEG, `ort-cpu`, one thread; padding shortcuts, so that widths inside of "
        f"residual blocks and whole blocks can go. {form['images']:,} training images, "
        f"{form['adapt_epochs']} epochs to adapt the given weights, then {epochs} for each arm, "
        f"same images, the dense one's too, in `{precision}`: W-Gates prunes after {gated} of "
        "them, the others before the first. Selected on validation (images that the given weights "
        "have seen), reported on test. "
        "l1, group-norm and bn-scale: LPNet, losses, selection and closed loop "
        "as for W-Gates, with that score in the gates' place. tp: torch-pruning's own pruners, "
        "scores ranked across layers; they, uniform and random thin layers and remove no blocks. "
        "In W-Gates' selection the plans that lose least are trained for "
        f"{steps} steps each (`--worth-steps`) beside these epochs, and not kept. "
        "Cells: top-1 % and the measured latency, all engines of a budget beside each other."
    )


def _worth_steps(result: dict[str, Any]) -> int:
    """Of W-Gates' arms, which were all made alike."""
    budgets = [arms for study in result["studies"].values() for arms in study["budgets"].values()]
    options = [arms[OURS]["options"] for arms in budgets if "options" in arms[OURS]]
    (steps,) = {item["prune"]["worth_steps"] for item in options}
    return int(steps)


def _table(network: str, seeds: list[Study]) -> Iterator[str]:
    budgets = _budgets(seeds)
    yield f"| {network} | {' | '.join(budgets)} |"
    yield "|---" * (1 + len(budgets)) + "|"
    dense = _top1([study["dense"] for study in seeds])
    yield f"| {DENSE} | {' | '.join([dense] * len(budgets))} |"
    of = {budget: _arms(seeds, budget) for budget in budgets}
    for name in dict.fromkeys(name for arms in of.values() for name in arms):
        cells = (_cell(list(arms.get(name, {}).values()), len(seeds)) for arms in of.values())
        yield f"| {name} | {' | '.join(cells)} |"


def _budgets(seeds: list[Study]) -> list[str]:
    """All that any seed has, falling."""
    every = {budget for study in seeds for budget in study["budgets"]}
    return sorted(every, key=lambda budget: -float(budget.rstrip("x")))


def _arms(seeds: list[Study], budget: str) -> Arms:
    found: Arms = {}
    for seed, study in enumerate(seeds):
        for name, item in study["budgets"].get(budget, {}).items():
            found.setdefault(name, {})[seed] = item
    return found


def _cell(outcomes: list[dict[str, Any]], seeds: int) -> str:
    """Of one arm at one budget, all its seeds; an arm that could not meet it says so."""
    done = [item for item in outcomes if "complaint" not in item]
    if not done:
        return "no plan met it" if outcomes else "–"
    ratio = mean(item["ratio_to_dense"] for item in done)
    missed = len(outcomes) - len(done)
    fewer = f"; {_seeds(len(outcomes))}" if len(outcomes) < seeds else ""
    return f"{_top1(done)} at {ratio:.3f}x{f'; {missed} missed it' if missed else ''}{fewer}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


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


def _remarks(seeds: list[Study]) -> Iterator[str]:
    """Who is ahead by how much; of several variants only how far they lie apart."""
    for budget in _budgets(seeds):
        met = _met(seeds, budget)
        if OURS not in met:
            continue
        leads = _leads(met)
        ours = {
            name: mean(tops.values())
            for name, tops in met.items()
            if name in ABLATIONS and name.startswith(OURS)
        }
        many = len(ours) > FEW
        told = [f"{_points(lead)} {name}" for name, lead in _beside(leads, many).items()]
        apart_by = _apart(ours) if many else ""
        rest = f"{_alike(seeds, budget)}{apart_by}{_unmet(seeds, budget)}"
        yield f"- {budget}: W-Gates is {', '.join(told)}.{rest}"
    arms = [_arms(seeds, budget).keys() for budget in _budgets(seeds)]
    if any(found != arms[0] for found in arms):
        yield "- –: not trained."
    made = {budget: item for study in reversed(seeds) for budget, item in study["made"].items()}
    yield f"- Trained and measured on {machines({b: m['device'] for b, m in made.items()})}."
    images = "95 % of the test images, not of seeds"
    yield f"- Seeds: {len(seeds)}; in brackets " + (
        f"their range, of one seed {images}. Leads are means over the seeds that both have."
        if len(seeds) > 1
        else f"{images}."
    )


def _met(seeds: list[Study], budget: str) -> dict[str, dict[int, float]]:
    """Top-1 % by arm and seed, of arms that met the budget with every seed they have; the dense."""
    met = {
        name: {seed: 100 * item["test"]["top1"] for seed, item in outcomes.items()}
        for name, outcomes in _arms(seeds, budget).items()
        if not any("complaint" in item for item in outcomes.values())
    }
    return met | {
        DENSE: {seed: 100 * study["dense"]["test"]["top1"] for seed, study in enumerate(seeds)}
    }


def _leads(met: dict[str, dict[int, float]]) -> Leads:
    return {
        name: [met[OURS][seed] - tops[seed] for seed in sorted(met[OURS].keys() & tops)]
        for name, tops in met.items()
        if name != OURS and met[OURS].keys() & tops
    }


def best_rivals(result: dict[str, Any]) -> dict[str, list[str]]:
    """In words, for each network and budget: the lead over the best rival of each kind."""
    told = {}
    for network, seeds in _by_network(result):
        for budget in _budgets(seeds):
            rivals = _beside(_leads(_met(seeds, budget)), many=True)
            told[f"{network} at {budget}"] = [
                f"{_points(lead)} {name}" for name, lead in rivals.items()
            ]
    return told


def _beside(leads: Leads, many: bool) -> Leads:
    """Those to be told: over the best baselines, ablations unless there are many, and dense."""
    others = {name: lead for name, lead in leads.items() if name not in {DENSE, *ABLATIONS}}
    apart = {name: lead for name, lead in others.items() if name not in SELECTED}
    ablated = {name: lead for name, lead in leads.items() if name in ABLATIONS}
    return (
        _least("baseline", others)
        | _least("without this selection", apart)
        | ({} if many else ablated)
        | {"dense": leads[DENSE]}
    )


def _least(kind: str, leads: Leads) -> Leads:
    """Over the best arm, under a name that says of which kind it is; nothing if there is none."""
    best = min(leads, key=lambda name: mean(leads[name]), default=None)
    return {} if best is None else {f"the best {kind} ({best})": leads[best]}


def _apart(tops: dict[str, float]) -> str:
    worst, best = (end(tops, key=lambda name: tops[name]) for end in (min, max))
    return f" The variants go from {tops[worst]:.2f} ({worst}) to {tops[best]:.2f} ({best})."


def _alike(seeds: list[Study], budget: str) -> str:
    """Which arms came to W-Gates' own widths, with every seed: only their channels differ."""
    widths = {
        name: [[width["kept"] for width in item.get("widths", [])] for item in outcomes.values()]
        for name, outcomes in _arms(seeds, budget).items()
    }
    same = [
        name
        for name, found in widths.items()
        if name != OURS and all(found) and found == widths[OURS]
    ]
    if not same:
        return ""
    ours = [item["widths"] for item in _arms(seeds, budget)[OURS].values()]
    return f" It keeps as many channels of every group as {', '.join(same)}.{_left_to_scores(ours)}"


def _left_to_scores(plans: list[list[dict[str, Any]]]) -> str:
    """Of how many groups filters had to be chosen; of one that is whole or gone there are none."""
    narrowed = max(sum(0 < width["kept"] < width["full"] for width in widths) for widths in plans)
    if not narrowed:
        return " All groups are whole or gone, so that no score has a channel to choose."
    return f" Scores have the channels of {narrowed} of {len(plans[0])} groups to choose."


def _unmet(seeds: list[Study], budget: str) -> str:
    """The arms of which no seed's plan met the budget."""
    names = [
        name
        for name, outcomes in _arms(seeds, budget).items()
        if all("complaint" in item for item in outcomes.values())
    ]
    return f" No plan of {', '.join(names)} met it." if names else ""


def _points(leads: list[float]) -> str:
    """The mean lead; of several seeds also the range of their leads."""
    lead = mean(leads)
    spread = f" ({min(leads):+.2f} to {max(leads):+.2f})" if len(leads) > 1 else ""
    return f"{abs(lead):.2f} points{spread} {'ahead of' if lead > 0 else 'behind'}"
