"""What an arm of the accuracy study came to, read from its run folder, and how results join."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.files import digest
from pipeline.run import RECORD
from targets.blocks import BlockRun

CHANGED = ("prune", "finetune")  # the stages whose options tell arms apart


def last_words(folder: Path) -> str:
    """The last error of the folder's log, or its last line."""
    lines = (folder / "log.txt").read_text(encoding="utf-8").strip().splitlines()
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])


def read(folder: Path, file: str) -> Any:
    return json.loads((folder / file).read_text(encoding="utf-8"))


def is_certified(folder: Path) -> bool:
    """Whether its certificate is of what its other stages hold now, whatever the verdict."""
    if not (folder / "verify" / RECORD).exists():
        return False
    needs = read(folder, f"verify/{RECORD}")["needs"]
    return all(digest(folder / need / RECORD) == found for need, found in needs.items())


def outcome(folder: Path) -> dict[str, Any]:
    """What an arm came to."""
    certificate = read(folder, "verify/certificate.json")
    prune, finetune = read(folder, "prune/prune.json"), read(folder, "finetune/finetune.json")
    options = {stage: read(folder, f"{stage}/stage.json")["options"] for stage in CHANGED}
    del options["prune"]["plan"]  # a path
    return {
        "options": options,
        "test": certificate["accuracy"]["engine"],
        "val": max((epoch["val_top1"] for epoch in finetune["history"]), default=None),
        "before_finetuning": finetune["top1"]["pruned"],
        "params": certificate["params"]["pruned"],
        "macs": certificate["macs"]["pruned"],
        "rounds": prune["rounds"],
        "widths": prune["widths"],
        "history": [*prune["history"], *finetune["history"]],
    }


def ratios(blocks: BlockRun, names: list[str]) -> dict[str, Any]:
    return {
        name: {
            **dict(zip(("ratio_to_dense", "ratio_ci95"), blocks.ratio(name, "dense"), strict=True)),
            "median_ms": blocks.median_ms(name),
        }
        for name in names
    }


def beside_older(studies: dict[str, Any], older: dict[str, Any]) -> dict[str, Any]:
    """The studies, by network and seed, and what older ones have that these have not.

    Of one that was made again, those budgets that it has not, if its dense network is the same.
    """
    again = {name: _with_budgets(study, older.get(name, {})) for name, study in studies.items()}
    return dict(sorted({**older, **again}.items()))


def _with_budgets(study: dict[str, Any], older: dict[str, Any]) -> dict[str, Any]:
    if older.get("adapted") != study["adapted"]:
        return study
    joined = {part: {**older[part], **study[part]} for part in ("budgets", "made")}
    falling = sorted(joined["budgets"], key=lambda budget: -float(budget.rstrip("x")))
    return study | {part: {name: found[name] for name in falling} for part, found in joined.items()}


def line(item: dict[str, Any]) -> str:
    if "complaint" in item:
        return str(item["complaint"])
    return f"test {item['test']['top1']:.2%} at {item['ratio_to_dense']:.3f}x of dense"
