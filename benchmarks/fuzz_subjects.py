"""What is fuzzed: how a sound one is made, damaged, and read to the end."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.fuzz_mutations import BYTES, FOLDER, mutate_json
from benchmarks.fuzz_onnx import graph_damage
from calibration.candidates import Slicer
from calibration.database import LatencyDatabase
from calibration.errors import DatabaseError
from calibration.rows import Row
from calibration.skeleton import Skeleton
from calibration.widths import dump
from pipeline.bundle import Bundle, sign_bundle, write_bundle
from pipeline.errors import BundleError
from pipeline.manifest import Manifest
from pipeline.signing import make_keys
from pipeline.stages.learner import read_plan
from targets import load_target
from targets.base import TargetOptions
from targets.errors import DeployError
from targets.timing import compare
from tests.calibration.chain import chain

WIDTHS = (16, 8)


class Subject(ABC):
    """One kind of input."""

    refusal: type[DeployError] = DeployError  # what a refusal must be
    forged = False  # a changed one may be accepted: nothing in it says what it was

    @abstractmethod
    def make(self, folder: Path) -> None:
        """Write a sound one into an empty folder."""

    @abstractmethod
    def damage(self, rng: random.Random, folder: Path) -> str:
        """Change it in place; returns the name of the damage."""

    @abstractmethod
    def use(self, folder: Path) -> object:
        """Read it to the end, as the program does; what it means, comparable by ==."""


class WholeBundle(Subject):
    """Anything in the folder is changed, as a disk, a network or a hand would."""

    refusal = BundleError

    def make(self, folder: Path) -> None:
        skeleton = chain(WIDTHS)
        target = load_target("fake", TargetOptions(batch=2, threads=1))
        engine = target.build(skeleton.onnx_bytes, folder.parent / "built.json").engine
        plan = skeleton.groups.first_channels(skeleton.groups.full(), skeleton.sha256)
        manifest = Manifest(
            name="tiny",
            wgates="0.1.0",
            created="2026-01-02T03:04:05+00:00",
            target="fake",
            threads=1,
            options={},
            batch=2,
            precision="fp32",
            input_shape=skeleton.input_shape,
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.2, 0.2),
            classes=("cat", "chién", "犬", "d", "e"),
            engine="engine.json",
            fingerprint=target.fingerprint().to_json(),
        )
        write_bundle(
            folder,
            manifest,
            {
                "engine.json": engine,
                "certificate.json": json.dumps({"schema": 1, "verdict": "met"}).encode(),
                "model.onnx": skeleton.onnx_bytes,
                "plan.json": dump(plan.to_json()).encode(),
                "triton/tiny/config.pbtxt": b'name: "tiny"\n',
            },
        )

    def damage(self, rng: random.Random, folder: Path) -> str:
        if rng.random() < 0.35:
            change = rng.choice(FOLDER)
            change(rng, folder)
            return change.__name__
        path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        json_too = path.name in ("manifest.json", "certificate.json", "plan.json")
        mutation = rng.choice((*BYTES, mutate_json) if json_too else BYTES)
        path.write_bytes(mutation(rng, path.read_bytes()))
        return mutation.__name__

    def use(self, folder: Path) -> object:
        return _used(Bundle.open(folder))


class ForgedBundle(WholeBundle):
    """Manifest or certificate is changed and every digest made right again, as an attacker would:
    what is accepted is another sound bundle, which only a signature can tell from the first."""

    refusal = DeployError  # the engine's own refusals, too
    forged = True

    def damage(self, rng: random.Random, folder: Path) -> str:
        name = rng.choice(("manifest.json", "manifest.json", "certificate.json", "engine.json"))
        path = folder / name
        mutation = rng.choice((mutate_json, mutate_json, *BYTES))
        path.write_bytes(mutation(rng, path.read_bytes()))
        if name != "manifest.json":
            _relist(folder, name)
        text = (folder / "manifest.json").read_bytes()
        line = f"{hashlib.sha256(text).hexdigest()}  manifest.json\n"
        (folder / "manifest.sha256").write_text(line)
        return f"{name}: {mutation.__name__}"


class SignedBundle(ForgedBundle):
    """The same forgeries of a signed bundle, opened with the public key."""

    refusal = BundleError
    forged = False

    def make(self, folder: Path) -> None:
        super().make(folder)
        key = folder.parent / "key"
        if not key.exists():
            make_keys(key)
        sign_bundle(folder, key)

    def use(self, folder: Path) -> object:
        return _used(Bundle.open(folder, key=folder.parent / "key.pub"))


def _relist(folder: Path, name: str) -> None:
    """Write a changed file's size and SHA-256 into the manifest."""
    content = (folder / name).read_bytes()
    document = json.loads((folder / "manifest.json").read_bytes())
    record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    document["files"][name] = record
    (folder / "manifest.json").write_text(json.dumps(document))


def _used(bundle: Bundle) -> object:
    certificate = bundle.certificate
    with bundle.load(any_fingerprint=True) as engine:
        if np.prod(engine.input_shape) > 1 << 16:
            return "another size"
        logits = engine.infer(np.ones(engine.input_shape, np.float32))
    return bundle.manifest, certificate, logits.tobytes()


class PlanFile(Subject):
    """`plan.json`, as `prune --plan` and every later stage read it."""

    forged = True
    file = "plan.json"

    def __init__(self) -> None:
        self.skeleton = chain(WIDTHS)
        self.slicer = Slicer(self.skeleton)

    def make(self, folder: Path) -> None:
        plan = self.skeleton.groups.first_channels(self.skeleton.groups.full(), self.slicer.sha256)
        (folder / self.file).write_text(dump(plan.to_json()), encoding="utf-8")

    def damage(self, rng: random.Random, folder: Path) -> str:
        mutation = rng.choice((mutate_json, mutate_json, mutate_json, *BYTES))
        path = folder / self.file
        path.write_bytes(mutation(rng, path.read_bytes()))
        return mutation.__name__

    def use(self, folder: Path) -> object:
        return self.slicer.slice(read_plan(folder / self.file))


class GroupsFile(PlanFile):
    """`groups.json`, read beside its skeleton and used to cut it."""

    file = "groups.json"

    def make(self, folder: Path) -> None:
        self.skeleton.save(folder)

    def use(self, folder: Path) -> object:
        found = Skeleton.open(folder)
        return Slicer(found).at_widths(found.groups.floor(8)), found


class Database(Subject):
    """The latency database: SQLite, opened and read to the last sample."""

    refusal = DatabaseError
    forged = True

    def make(self, folder: Path) -> None:
        skeleton, target = chain(WIDTHS), load_target("fake", TargetOptions(batch=2, threads=1))
        built = target.build(skeleton.onnx_bytes, folder.parent / "anchor.json").engine
        path = folder / "latency.sqlite"
        with target.load(built) as one, target.load(built) as other:
            row = Row.of(
                skeleton.sha256, target.fingerprint(), skeleton.groups.full(), compare(one, other)
            )
        narrow = replace(row, widths=skeleton.groups.floor(8))
        with LatencyDatabase(path) as database:
            database.add(row)
            database.mark_lost(row.skeleton, row.fingerprint, narrow.widths, "too slow")
        with sqlite3.connect(path) as connection:  # one file, without its journal
            connection.execute("PRAGMA journal_mode = DELETE")
        connection.close()

    def damage(self, rng: random.Random, folder: Path) -> str:
        path = folder / "latency.sqlite"
        if rng.random() < 0.5:
            return self._damage_value(rng, path)
        mutation = rng.choice(BYTES)
        path.write_bytes(mutation(rng, path.read_bytes()))
        return mutation.__name__

    def _damage_value(self, rng: random.Random, path: Path) -> str:
        """A value that SQLite itself takes."""
        text = rng.choice(("", "{", "[]", "null", '{"conv0": -1}', "[" * 5000, '"x"', "1e999"))
        table, column, value = rng.choice(
            (
                ("fingerprint", "document", text),
                ("measurement", "widths", text),
                ("measurement", "doubts", text),
                ("measurement", "measured_at", text),
                ("measurement", "ratio", rng.choice((-1.0, 0.0, 1e308, float("inf")))),
                ("measurement", "candidate", rng.randbytes(40)),
                ("measurement", "anchor", b"WGS2" + rng.randbytes(40)),
                ("measurement", "calls_per_round", rng.choice((0, -1, 2**62))),
                ("lost", "widths", text),
            )
        )
        connection = sqlite3.connect(path)
        with connection:
            connection.execute(f"UPDATE {table} SET {column} = ?", (value,))
        connection.close()
        return f"{table}.{column}"

    def use(self, folder: Path) -> object:
        skeleton, target = chain(WIDTHS), load_target("fake", TargetOptions(batch=2, threads=1))
        print_ = target.fingerprint()
        with LatencyDatabase(folder / "latency.sqlite") as database:
            rows = database.rows(skeleton.sha256)
            records = database.records(skeleton.sha256, print_)
            return rows, records, database.lost(skeleton.sha256, print_)


class OnnxFile(Subject):
    """A graph, built and run; other weights in a graph that is whole are another network."""

    forged = True

    def __init__(self, target: str) -> None:
        self.target = load_target(target, TargetOptions(batch=2, threads=1))
        self.model = chain(WIDTHS).onnx_bytes

    def make(self, folder: Path) -> None:
        (folder / "model.onnx").write_bytes(self.model)

    def damage(self, rng: random.Random, folder: Path) -> str:
        path = folder / "model.onnx"
        if rng.random() < 0.5:
            path.write_bytes(graph_damage(rng, self.model))
            return "graph"
        mutation = rng.choice(BYTES)
        path.write_bytes(mutation(rng, self.model))
        return mutation.__name__

    def use(self, folder: Path) -> object:
        record = self.target.build(folder / "model.onnx", folder / "engine")
        with self.target.load(record.engine) as engine:
            if np.prod(engine.input_shape) > 1 << 16:
                return "another size"
            return engine.infer(np.ones(engine.input_shape, np.float32)).tobytes()


SUBJECTS = {
    "bundle": WholeBundle,
    "forged bundle": ForgedBundle,
    "forged signed bundle": SignedBundle,
    "plan.json": PlanFile,
    "groups.json": GroupsFile,
    "latency database": Database,
    "ONNX, fake": lambda: OnnxFile("fake"),
    "ONNX, ort-cpu": lambda: OnnxFile("ort-cpu"),
}
