"""Damaged bundles, plans, groups, databases and graphs: each is refused in one line, or means what
it meant.

python -m benchmarks.fuzz                     # 20 000 bundles of each kind, 5 000 of the others
python -m benchmarks.fuzz --count 200 --only plan.json

Every trial is one damage, drawn by its number, so that any can be repeated. It fails by any other
exception than a refusal, by a refusal of several lines or without a fix, by taking longer than
LIMIT_S or more memory than MEMORY, by writing outside its folder, by starting a process or
unpickling anything, and by accepting what was changed in meaning. Plans, groups, databases, graphs
and bundles whose digests were made right again carry nothing that says what they were: of those a
sound other one may be accepted, and is counted. Trials run in child processes: one that crashes
the interpreter is counted, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import environment, write_result
from benchmarks.fuzz_subjects import SUBJECTS, Subject
from targets.errors import DeployError

BUNDLES, OTHERS = 20_000, 5_000
BATCH = 500  # trials a child process
LIMIT_S = 10.0
MEMORY = 4 << 30  # bytes of address space beyond what the child starts with
MAX_MESSAGE = 1000  # characters of a refusal
FINE = ("refused", "same")
FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork",
             "pickle.find_class", "socket.connect", "socket.bind", "urllib.Request")  # fmt: skip
WRITING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate")


class Watch:
    """Notes what a trial does that it must not; an audit hook cannot be taken out again."""

    def __init__(self) -> None:
        self.inside: str | None = None  # the folder that may be written to; None: not watching
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments[:1]}")
        elif event in WRITING and not str(arguments[0]).startswith(self.inside):
            self.seen.append(f"{event} {arguments[0]}")
        elif event == "open" and self._is_writing(arguments):
            self.seen.append(f"open {arguments[0]} to write")

    def _is_writing(self, arguments: tuple[Any, ...]) -> bool:
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & 0o3 != 0
        return writes and not isinstance(path, int) and not str(path).startswith(str(self.inside))

    @contextmanager
    def on(self, folder: Path) -> Iterator[None]:
        self.seen, self.inside = [], str(folder)
        try:
            yield
        finally:
            self.inside = None


@dataclass(frozen=True)
class Trial:
    """One damage and what became of it."""

    number: int
    damage: str
    outcome: str  # refused, same, other, or how it failed
    detail: str
    seconds: float


class HangError(BaseException):
    """Raised by the alarm, past every `except` that may stand in between."""


def _ring(*_: object) -> None:
    raise HangError


def run_trials(name: str, numbers: range, place: Path, watch: Watch) -> Iterator[Trial]:
    """Trials of one subject in this process, in a folder of `place`."""
    subject = SUBJECTS[name]()
    sound, work = place / "sound", place / "work"
    sound.mkdir()
    subject.make(sound)
    meaning = _meaning_of(subject, sound, work)  # also imports all that is imported late
    around = _names(place)
    for number in numbers:
        rng = random.Random(f"{name} {number}")
        _copy(sound, work)
        damage = subject.damage(rng, work)
        started = time.perf_counter()
        outcome, detail = _judged(subject, work, meaning, watch)
        seconds = time.perf_counter() - started
        if watch.seen:
            outcome, detail = "escaped", "; ".join(watch.seen)
        elif extra := _names(place) - around - {"elsewhere"}:
            outcome, detail = "escaped", f"wrote {extra}"
        yield Trial(number, damage, outcome, detail, seconds)


def _meaning_of(subject: Subject, sound: Path, work: Path) -> object:
    _copy(sound, work)
    subject.use(work)
    _copy(sound, work)
    return subject.use(work)


def _judged(subject: Subject, work: Path, meaning: object, watch: Watch) -> tuple[str, str]:
    previous = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        with watch.on(work):
            found = subject.use(work)
    except HangError:
        return "hung", f"{LIMIT_S} s"
    except DeployError as error:
        return _refusal(subject, work, error)
    except BaseException as error:  # noqa: B036  (that it is none is what is tested)
        return "crashed", f"{type(error).__name__}: {error}"[:500]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    if found == meaning:
        return "same", ""
    return ("other" if subject.forged else "accepted"), ""


def _refusal(subject: Subject, work: Path, error: DeployError) -> tuple[str, str]:
    said = str(error)
    if not isinstance(error, subject.refusal):
        return "unclear", f"{type(error).__name__}: {said}"[:500]
    if "\n" in said or not said.isprintable() or len(said) > MAX_MESSAGE or not error.fix:
        return "unclear", f"{type(error).__name__}, fix {error.fix!r}: {said!r}"[:500]
    # the folder is another one in every child, and no part of what was said
    return "refused", error.message.replace(f"{work}/", "").partition(":")[0][:60]


def _copy(sound: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(sound, work)


def _names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()} | {p.name for p in place.parent.iterdir()}


# children ---------------------------------------------------------------------------------


def _child(name: str, numbers: range, out: Path, watch: Watch) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # runtimes log every refusal
    with tempfile.TemporaryDirectory() as outer, out.open("w", encoding="utf-8") as file:
        place = Path(outer) / "place"
        place.mkdir()
        for trial in run_trials(name, numbers, place, watch):
            file.write(json.dumps(vars(trial), ensure_ascii=True) + "\n")
            file.flush()


def in_children(name: str, count: int, watch: Watch) -> Iterator[Trial]:
    """Trials 0 to `count` in child processes; a child that dies counts as a crash of its trial."""
    start = 0
    while start < count:
        numbers = range(start, min(start + BATCH, count))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "trials"
            child = multiprocessing.get_context("fork").Process(
                target=_child, args=(name, numbers, out, watch)
            )
            child.start()
            child.join()
            done = [Trial(**json.loads(line)) for line in out.read_text("utf-8").splitlines()]
        yield from done
        start += len(done)
        if len(done) < len(numbers):
            yield Trial(start, "", "crashed", f"the process ended with {child.exitcode}", 0.0)
            start += 1


def summary(trials: list[Trial]) -> dict[str, Any]:
    """Counts by outcome and by what a refusal said, the slowest trial, and every failure."""
    failed = [vars(trial) for trial in trials if trial.outcome not in (*FINE, "other")]
    refusals = Counter(trial.detail for trial in trials if trial.outcome == "refused")
    return {
        "trials": len(trials),
        "outcomes": dict(Counter(trial.outcome for trial in trials).most_common()),
        "damages": dict(Counter(trial.damage for trial in trials).most_common()),
        "refusals": len(refusals),
        "refused_most_often_by": dict(refusals.most_common(12)),
        "slowest_s": max(trial.seconds for trial in trials),
        "failures": failed[:50],
        "failure_count": len(failed),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, help="trials of each kind")
    parser.add_argument("--only", choices=sorted(SUBJECTS))
    parser.add_argument("--no-result", action="store_true", help="print, and write no file")
    chosen = parser.parse_args()
    watch, found = Watch(), {}
    for name in [chosen.only] if chosen.only else list(SUBJECTS):
        count = chosen.count or (BUNDLES if "bundle" in name else OTHERS)
        found[name] = summary(list(in_children(name, count, watch)))
        failures = found[name]["failure_count"]
        print(f"{name}: {found[name]['outcomes']}, {failures} failures", flush=True)
        for failure in found[name]["failures"][:10]:
            print("  ", failure)
    if not chosen.no_result:
        write_result("fuzz.json", {"environment": environment(), "subjects": found})
    return int(any(item["failure_count"] for item in found.values()))


if __name__ == "__main__":
    sys.exit(main())
