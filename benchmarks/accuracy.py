"""Accuracy at equal measured latency on CIFAR-10: dense, baselines and W-Gates.

    python -m benchmarks.accuracy --data DIR --weights DIR --work FOLDER [--form small]

DIR of --data holds train/<class>/*.jpg and test/<class>/*.jpg, that of --weights the checkpoints
resnet20-cifar10.safetensors and resnet56-cifar10.safetensors. All arms of a network and seed start
from one dense network (the checkpoint, adapted to the JPEG images) and one calibration, prune the
widths inside of residual blocks and, where form and method can, whole blocks, train for the same
number of epochs on the same images with the same augmentation, select on
validation and report test. At the end the engines of a budget are timed beside each other in the
same fresh processes. Every arm is a run folder with its log; what is done is not done again, so the
study goes on where it was stopped. Plans are measured: `--until prune` makes them while nobody else
is at work, and trainings may then go on side by side, each with --arms of its own. Budgets that
--budgets leaves out stay in the result file as they are if the same dense network was pruned; each
says who measured it. Seeds that --seeds leaves out stay as they are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy_arms import ABLATIONS, BASELINES, FORMS, GIVEN, Arm, Form
from benchmarks.accuracy_outcome import (
    beside_older,
    is_certified,
    last_words,
    line,
    outcome,
    ratios,
    read,
)
from benchmarks.common import environment, made, older_result, start_from, write_result
from benchmarks.torch_pruning_plans import METHODS, plan_at
from calibration.widths import dump
from pipeline.files import digest
from pipeline.models.weights import load_weights
from pipeline.models.zoo import create_model
from targets.base import TargetOptions
from targets.blocks import BlockRun, measure_blocks

CLASSES = 10
# torch-pruning's plans are found by measuring; they aim below the budget as all arms do
MARGIN, TRIES, STEP = 0.02, 3, 0.01
# an arm's verify is for the accuracy of its engine; engines are timed beside each other at the end
FOR_ACCURACY = ("--processes", "2", "--cold-starts", "0", "--no-counterfactual")


@dataclass(frozen=True)
class Study:
    """One network and seed: a base that all its arms start from."""

    network: str
    seed: int
    form: Form
    given: argparse.Namespace

    @property
    def folder(self) -> Path:
        work: Path = self.given.work
        return work / f"{self.network}-seed{self.seed}"

    @property
    def model(self) -> str:
        return f"wgates:{self.network}a"

    def budgets(self) -> tuple[float, ...]:
        """Shares of the dense latency: the form's, or those that were asked for."""
        asked: str | None = self.given.budgets
        return tuple(map(float, asked.split(","))) if asked else self.form.budgets

    def base(self) -> Path:
        """The adapted dense network, traced and calibrated."""
        folder, form = self.folder / "base", self.form
        weights = self.given.weights / f"{self.network}-cifar10.safetensors"
        self._prepare(folder, weights, form.adapt_epochs, lr="0.02")
        blocks = "--remove-blocks" if form.remove_blocks else "--no-remove-blocks"
        stage("trace", folder, "--residual", "inner", blocks)
        limits = ("--samples", str(form.samples), "--lpnet-error", "1%")
        stage("calibrate", folder, "--target", "ort-cpu", "--threads", "1", *limits)
        return folder

    def dense(self) -> dict[str, Any]:
        """The dense network, trained for as many more epochs as the pruned arms are."""
        folder = self.folder / "dense"
        epochs = self.form.gate_epochs + self.form.finetune_epochs
        dense = self.folder / "base" / "prepare" / "dense.safetensors"
        seconds = self._prepare(folder, dense, epochs, lr="0.05")
        found = read(folder, "prepare/prepare.json")
        return {"test": found["top1"]["test"], "history": found["history"], "seconds": seconds}

    def _prepare(self, folder: Path, weights: Path, epochs: int, *, lr: str) -> float:
        return stage(
            *("prepare", folder, "--model", self.model, "--weights", str(weights)),
            *("--data", f"imagefolder:{self.given.data}", "--seed", str(self.seed)),
            *("--train-limit", str(self.form.images), "--train-batch", "128"),
            *("--dense-epochs", str(epochs), "--dense-lr", lr),
            *("--train-precision", self.given.train_precision),
        )

    def arm(self, name: str, budget: float, how: Arm) -> dict[str, Any]:
        """One pruned network, from the base to its verified engine."""
        folder = self.folder / f"{budget:g}x {name}"
        start_from(self.folder / "base", folder)
        if name in METHODS:
            return self._given_plan(name, folder, budget)
        if how.plan_of:
            path = self.folder / f"{budget:g}x {how.plan_of}" / "prune" / "plan.json"
            how = replace(how, prune=("--plan", str(path)))
        return self._trained(folder, budget, how)

    def _given_plan(self, name: str, folder: Path, budget: float) -> dict[str, Any]:
        """torch-pruning's plan; searched again a little lower if it turns out too slow."""
        model = create_model(self.model, CLASSES)
        load_weights(model, self.folder / "base" / "prepare" / "dense.safetensors")
        path, found = folder / "given.json", {}
        for attempt in range(TRIES):
            if not path.exists():
                aim = budget * (1 - MARGIN - attempt * STEP)
                plan, how = plan_at(folder, model.eval(), name, aim)
                (folder / "search.json").write_text(dump(how), encoding="utf-8")
                path.write_text(dump(plan.to_json()), encoding="utf-8")
            found = self._trained(folder, budget, replace(GIVEN, prune=("--plan", str(path))))
            if "complaint" not in found or self.given.until:
                break
            path.unlink()
        return found

    def _trained(self, folder: Path, budget: float, how: Arm) -> dict[str, Any]:
        form = self.form
        gated = round(how.gates * form.gate_epochs)
        epochs = form.gate_epochs + form.finetune_epochs
        aim = ("--budget", f"{budget:g}x", "--margin", f"{MARGIN:g}", "--worth", form.worth)
        # the dense network teaches in all epochs, before pruning as in fine-tuning
        taught = ("--gate-distill", "0.5") if gated else ()
        seconds = 0.0
        for name, options in {
            "prune": (*aim, "--gate-epochs", str(gated), *taught, *how.prune),
            "finetune": ("--finetune-epochs", str(epochs - gated), *how.finetune),
            "export": (),
            "build": (),
            "verify": FOR_ACCURACY,
        }.items():
            if name == "verify" and is_certified(folder):
                break  # so few processes have no verdict: asked again, it would measure on
            took = stage(name, folder, *options, may_fail=True)
            seconds += took
            if not (folder / name).exists():
                return {"complaint": last_words(folder), "seconds": seconds}
            if name == self.given.until:
                return {"complaint": f"stopped after {name}, as asked", "seconds": seconds}
        return {**outcome(folder), "seconds": seconds}


def stage(name: str, folder: Path, *flags: str, may_fail: bool = False) -> float:
    """Run one stage, its words into the folder's log; seconds it took."""
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(sys.executable).with_name("pipeline")
    started = time.perf_counter()
    print(f"{folder.parent.name}/{folder.name}: {name}", flush=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        done = subprocess.run(
            [script, name, str(folder), *flags], stdout=log, stderr=log, check=False
        )
    if done.returncode not in ((0, 1, 3) if may_fail else (0,)):
        raise SystemExit(f"{name} {folder}: exit code {done.returncode}\n{last_words(folder)}")
    return time.perf_counter() - started


def timed(study: Study, budget: float, names: list[str]) -> dict[str, Any]:
    """The engines of one budget beside the dense one, in the same fresh processes."""
    folders = {name: study.folder / f"{budget:g}x {name}" for name in names}
    engines = {name: folder / "build" / "engine.onnx" for name, folder in folders.items()}
    engines["dense"] = next(iter(folders.values())) / "build" / "dense.onnx"
    of = {name: digest(engine) for name, engine in engines.items()}
    path = study.folder / f"{budget:g}x timing.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if stored.get("of") == of:
        return ratios(BlockRun.from_json(stored["measured"]), names)
    blocks = measure_blocks(
        "ort-cpu",
        TargetOptions(threads=1),
        engines,
        processes=study.form.processes,
        seconds_per_block=0.3,
    )
    path.write_text(json.dumps({"of": of, "measured": blocks.to_json()}), encoding="utf-8")
    return ratios(blocks, names)


def run(study: Study) -> dict[str, Any]:
    """All arms of one network and seed."""
    study.base()
    wanted: list[str] = study.given.arms.split(",") if study.given.arms else []
    arms = {"wgates": Arm(), **BASELINES, **dict.fromkeys(METHODS, GIVEN)}
    if study.given.ablate:
        arms |= ABLATIONS
    chosen = {name: how for name, how in arms.items() if not wanted or name in wanted}
    document: dict[str, Any] = {"budgets": {}, "made": {}}
    for budget in study.budgets():
        found = {name: study.arm(name, budget, how) for name, how in chosen.items()}
        built = [name for name, item in found.items() if "complaint" not in item]
        for name, ratio in (timed(study, budget, built) if built else {}).items():
            found[name] |= ratio
        document["budgets"][f"{budget:g}x"] = found
        document["made"][f"{budget:g}x"] = made(environment())
        for name, item in found.items():
            print(f"{budget:g}x {name}: {line(item)}", flush=True)
    if study.given.until:
        return document
    document["dense"] = study.dense()
    document["adapted"] = read(study.folder / "base", "prepare/prepare.json")["top1"]
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--form", choices=list(FORMS), default="small")
    parser.add_argument("--arms", help="only these, by commas")
    parser.add_argument("--seeds", help="only these, by commas; more than the form has, too")
    parser.add_argument("--budgets", help="only these shares of the dense latency, by commas")
    parser.add_argument("--until", choices=["prune"], help="stop each arm after this stage")
    parser.add_argument("--ablate", action="store_true", help="variants of W-Gates, too")
    parser.add_argument("--train-precision", default="32-true")
    parser.add_argument("--out", help="name of a result file in benchmarks/results")
    given = parser.parse_args()
    if given.until and given.out:
        parser.error("--until makes no result that --out could hold")
    form = FORMS[given.form]
    seeds = list(map(int, given.seeds.split(","))) if given.seeds else range(form.seeds)
    studies = [Study(network, seed, form, given) for network in form.networks for seed in seeds]
    found = {study.folder.name: run(study) for study in studies}
    if given.out:
        protocol = {"form": form.to_json(), "train_precision": given.train_precision}
        older = older_result(given.out, protocol=protocol).get("studies", {})
        write_result(
            given.out,
            {
                "environment": environment(),
                "protocol": protocol,
                "studies": beside_older(found, older),
            },
        )


if __name__ == "__main__":
    main()
