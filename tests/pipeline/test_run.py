"""The run folder with stages that only write a file: what is done again, and what is kept."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from pipeline import files
from pipeline.errors import DeployError, MissingInputError
from pipeline.files import copy_atomically, write_atomically
from pipeline.options import option
from pipeline.run import Context, Run, Stage

FAKE_MODULE = "wgates_fake_stages"


@dataclass(frozen=True)
class MakeOptions:
    size: int = option(1, "how much", least=0)
    source: Path | None = option(None, "a file that is read")
    recipe: str = option("plain", "a word, or file.py:function")


@dataclass(frozen=True)
class UseOptions:
    often: bool = option(False, "again and again")
    share: float = option(0.5, "of it")


class Quiet:
    """A reporter that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)


class Workshop:
    """Two stages, `make` and `use`; `works` says what each does, `calls` what was done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[str] = []
        self.works: dict[str, Callable[[Context], None]] = {}
        self.reporter = Quiet()
        self.content = "made"
        self.stages = {
            "make": Stage("make", (), MakeOptions, f"{FAKE_MODULE}:make", "a thing"),
            "use": Stage("use", ("make",), UseOptions, f"{FAKE_MODULE}:use", "its use", ("shop",)),
        }

    def make(self, context: Context) -> None:
        self.calls.append("make")
        if "make" in self.works:
            self.works["make"](context)
        write_atomically(context.partial / "thing.txt", self.content.encode())

    def use(self, context: Context) -> None:
        self.calls.append("use")
        thing = context.run.read("make", "thing.txt").read_text()
        shop = context.partial / "shop"
        shop.mkdir(exist_ok=True)
        (shop / "sign.txt").write_text(f"{thing}, used")
        if "use" in self.works:
            self.works["use"](context)

    def run(self, *names: str, **flags: Any) -> list[str]:
        """One command: the stages that it really did."""
        self.calls.clear()
        self.reporter.said.clear()
        run = self.opened(**flags)
        for name in names or ("make", "use"):
            run.execute(self.stages[name], self.reporter)
        return list(self.calls)

    def opened(self, **flags: Any) -> Run:
        run = Run(self.folder, self.stages)
        run.resolve(flags)
        return run

    def events(self) -> list[tuple[str, str]]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [(line["event"], line["stage"]) for line in map(json.loads, lines)]


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    shop = Workshop(tmp_path / "run")
    module = types.ModuleType(FAKE_MODULE)
    vars(module).update(make=shop.make, use=shop.use)
    monkeypatch.setitem(sys.modules, FAKE_MODULE, module)
    return shop


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def killed(_: Context) -> None:
    raise Killed


# freshness ------------------------------------------------------------------------------------


def test_nothing_is_done_twice(workshop: Workshop) -> None:
    assert workshop.run() == ["make", "use"]
    assert workshop.run() == []
    assert workshop.reporter.said == [
        "make: done before, nothing changed",
        "use: done before, nothing changed",
    ]


def test_what_an_older_version_wrote_in_another_schema_is_written_again(workshop: Workshop) -> None:
    workshop.run()
    workshop.stages["make"] = replace(workshop.stages["make"], schema=2)
    assert workshop.run() == ["make", "use"]
    assert workshop.run() == []


def test_options_of_a_stage_are_what_it_depends_on(workshop: Workshop) -> None:
    workshop.run()
    assert workshop.run(often=True) == ["use"]
    assert workshop.run(size=2) == ["make", "use"]
    assert workshop.run(size=2, often=True) == []


def test_a_number_is_the_same_as_whole_or_broken(workshop: Workshop) -> None:
    workshop.run(share=1.0)
    assert workshop.run(share=1) == []


def test_a_stage_done_anew_makes_later_ones_stale(workshop: Workshop) -> None:
    """Even with the same options: training and measuring do not give the same twice."""
    workshop.run()
    workshop.run("make", size=2)
    workshop.content = "made again"
    workshop.run("make", size=1)
    assert workshop.run(size=1) == ["use"]
    assert (workshop.folder / "shop" / "sign.txt").read_text() == "made again, used"


def test_a_stage_alone_is_not_done_with_what_is_out_of_date(workshop: Workshop) -> None:
    workshop.run("make", "use", size=1)
    with pytest.raises(MissingInputError, match="make was made before its options") as caught:
        workshop.run("use", size=2)
    assert caught.value.fix == f"run: pipeline make {workshop.folder}"
    assert workshop.calls == []
    workshop.content = "made anew"
    assert workshop.run("make", size=2) == ["make"]
    assert workshop.run("use", size=2) == ["use"]


def test_a_stage_done_anew_with_the_same_outcome_changes_nothing(workshop: Workshop) -> None:
    workshop.run()
    workshop.run("make", size=2)
    workshop.run("make", size=1)
    assert workshop.run() == []


def test_a_file_that_an_option_names_is_an_input(workshop: Workshop, tmp_path: Path) -> None:
    source = tmp_path / "weights.bin"
    source.write_bytes(b"one")
    workshop.run(source=source)
    assert workshop.run(source=source) == []
    source.write_bytes(b"two")
    assert workshop.run(source=source) == ["make", "use"]
    source.unlink()  # as on the machine where the next stage runs
    assert workshop.run(source=source) == []
    assert workshop.run(source=tmp_path / "other.bin") == ["make", "use"]


def test_the_users_own_file_is_an_input(workshop: Workshop, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def cook(): pass\n")
    workshop.run(recipe=f"{recipe}:cook")
    assert workshop.run(recipe=f"{recipe}:cook") == []
    recipe.write_text("def cook(): return 1\n")
    assert workshop.run(recipe=f"{recipe}:cook") == ["make", "use"]


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"stage": "make"}'])
def test_a_damaged_record_counts_as_none(workshop: Workshop, damage: str) -> None:
    workshop.run("make")
    (workshop.folder / "make" / "stage.json").write_text(damage)
    assert workshop.run("make") == ["make"]


def test_what_was_published_and_removed_is_made_again(workshop: Workshop) -> None:
    workshop.run()
    (workshop.folder / "shop" / "sign.txt").unlink()
    (workshop.folder / "shop").rmdir()
    assert workshop.run() == ["use"]
    assert (workshop.folder / "shop" / "sign.txt").exists()


# partial folders ------------------------------------------------------------------------------


def test_stage_writes_under_a_temporary_name(workshop: Workshop) -> None:
    seen: list[list[str]] = []
    workshop.works["make"] = lambda context: seen.append(
        sorted(p.name for p in workshop.folder.iterdir() if p.is_dir())
    )
    workshop.run("make")
    assert seen == [["make.partial"]]
    assert [p.name for p in workshop.folder.iterdir() if p.is_dir()] == ["make"]


def test_killed_stage_finds_what_it_had(workshop: Workshop) -> None:
    found: list[bool] = []

    def work(context: Context) -> None:
        found.append((context.partial / "half").exists())
        (context.partial / "half").touch()
        if len(found) == 1:
            raise Killed

    workshop.works["make"] = work
    with pytest.raises(Killed):
        workshop.run("make")
    assert not (workshop.folder / "make").exists()
    workshop.run("make")
    assert found == [False, True]


def test_what_is_open_goes_on_with_what_it_wrote(workshop: Workshop) -> None:
    found: list[str | None] = []

    def work(context: Context) -> None:
        before = context.earlier("thing.txt")
        found.append(before.read_text() if before else None)

    workshop.works["make"] = work
    workshop.stages["make"] = replace(
        workshop.stages["make"], is_open=lambda made: (made / "thing.txt").read_text() == "half"
    )
    workshop.content = "half"
    workshop.run("make", "use")
    workshop.content = "made"
    workshop.run("make", "use")
    assert found == [None, "half"]
    assert (workshop.folder / "shop" / "sign.txt").read_text() == "made, used"
    assert workshop.run("make", "use") == []


def test_a_file_that_was_edited_is_nothing_to_go_on_with(workshop: Workshop) -> None:
    found: list[Path | None] = []
    workshop.works["make"] = lambda context: found.append(context.earlier("thing.txt"))
    workshop.stages["make"] = replace(workshop.stages["make"], is_open=lambda made: True)
    workshop.run("make")
    (workshop.folder / "make" / "thing.txt").write_text("other")
    workshop.run("make")
    workshop.run("make", size=2)
    assert found == [None, None, None]


def test_what_a_killed_stage_had_found_is_not_found_again(workshop: Workshop) -> None:
    answers = iter([{"bias": 0.5}, {"bias": 0.7}])
    found = []

    def work(context: Context) -> None:
        found.append(context.remembered("bias.json", lambda: next(answers)))
        if len(found) == 1:
            raise Killed

    workshop.works["make"] = work
    with pytest.raises(Killed):
        workshop.run("make")
    workshop.run("make")
    assert found == [{"bias": 0.5}] * 2
    assert json.loads((workshop.folder / "make" / "bias.json").read_text()) == {"bias": 0.5}


def test_what_a_killed_process_was_writing_is_removed(workshop: Workshop) -> None:
    def work(context: Context) -> None:
        (context.partial / "below").mkdir(exist_ok=True)
        for name in (".thing.txt.123", "below/.engine.45.partial.onnx", "below/.kept"):
            (context.partial / name).touch()
        raise Killed

    workshop.works["make"] = work
    with pytest.raises(Killed):
        workshop.run("make")
    (workshop.folder / ".run.toml.678").touch()
    del workshop.works["make"]
    run = workshop.opened()
    with run.locked():
        run.execute(workshop.stages["make"], workshop.reporter)
    assert sorted(path.name for path in workshop.folder.rglob(".*")) == [".kept", ".lock"]


def test_other_options_start_from_nothing(workshop: Workshop) -> None:
    workshop.works["make"] = lambda context: ((context.partial / "half").touch(), killed(context))
    with pytest.raises(Killed):
        workshop.run("make")
    found: list[bool] = []
    workshop.works["make"] = lambda context: found.append((context.partial / "half").exists())
    workshop.run("make", size=2)
    assert found == [False]


def test_new_inputs_start_from_nothing(workshop: Workshop) -> None:
    workshop.works["use"] = lambda context: ((context.partial / "half").touch(), killed(context))
    with pytest.raises(Killed):
        workshop.run()
    found: list[bool] = []
    workshop.works["use"] = lambda context: found.append((context.partial / "half").exists())
    workshop.content = "made otherwise"
    workshop.run(size=2)
    assert found == [False]


def test_failed_rerun_keeps_the_earlier_result(workshop: Workshop) -> None:
    workshop.run()
    workshop.works["use"] = killed
    with pytest.raises(Killed):
        workshop.run(often=True)
    assert (workshop.folder / "use" / "stage.json").exists()
    assert (workshop.folder / "shop" / "sign.txt").exists()
    # but it is not taken for the new one
    del workshop.works["use"]
    assert workshop.run(often=True) == ["use"]


@pytest.mark.parametrize("step", range(6))
def test_kill_while_everything_gets_its_final_name(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Each rename and each removal of the old may be the last thing a process does."""
    workshop.run()
    steps = iter(range(100))

    def or_killed(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            if next(steps) == step:
                raise Killed
            return real(*arguments, **named)

        return act

    workshop.content = "made anew"
    workshop.run("make", size=2)
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", or_killed(files.shutil.rmtree))
        patch.setattr(Path, "rename", or_killed(Path.rename))
        with pytest.raises(Killed):
            workshop.run("use", size=2)
    if (workshop.folder / "shop").exists():  # never half of it under its final name
        assert (workshop.folder / "shop" / "sign.txt").exists()
    with workshop.opened(size=2).locked():
        workshop.run(size=2)
    assert [path.name for path in workshop.folder.rglob(".*")] == [".lock"]
    assert (workshop.folder / "shop" / "sign.txt").read_text() == "made anew, used"
    assert workshop.run(size=2) == []


# published folders, events, inputs ------------------------------------------------------------


def test_published_folder_is_moved_beside_the_stages(workshop: Workshop) -> None:
    workshop.run()
    assert (workshop.folder / "shop" / "sign.txt").read_text() == "made, used"
    assert not (workshop.folder / "use" / "shop").exists()
    workshop.content = "better"
    workshop.run(size=2)
    assert (workshop.folder / "shop" / "sign.txt").read_text() == "better, used"


def test_events_say_what_happened_when(workshop: Workshop) -> None:
    workshop.works["use"] = killed
    with pytest.raises(Killed):
        workshop.run()
    assert workshop.events() == [
        ("stage started", "make"),
        ("stage finished", "make"),
        ("stage started", "use"),
    ]
    lines = (workshop.folder / "events.jsonl").read_text().splitlines()
    times = [datetime.fromisoformat(json.loads(line)["at"]) for line in lines]
    assert times == sorted(times)
    assert all(at.tzinfo is not None for at in times)


def test_events_tell_a_stage_that_is_taken_up_again_or_fails(workshop: Workshop) -> None:
    def told() -> list[dict[str, Any]]:
        lines = (workshop.folder / "events.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "at"} for line in lines]

    workshop.works["make"] = killed
    with pytest.raises(Killed):
        workshop.run("make")
    assert told() == [{"event": "stage started", "stage": "make", "resumed": False}]

    def fail(_: Context) -> None:
        raise DeployError("no such thing", fix="make one")

    workshop.works["make"] = fail
    with pytest.raises(DeployError):
        workshop.run("make")
    assert told()[1:] == [
        {"event": "stage started", "stage": "make", "resumed": True},
        {"event": "stage failed", "stage": "make", "reason": "no such thing"},
    ]


def test_an_event_cut_short_by_a_full_disk_spoils_no_other(workshop: Workshop) -> None:
    run = workshop.opened()
    run.event("first", stage="make")
    with (workshop.folder / "events.jsonl").open("a") as file:
        file.write('{"at": "2026-01-01T0')
    run.event("second", stage="make")
    lines = (workshop.folder / "events.jsonl").read_text().splitlines()
    assert [json.loads(lines[at])["event"] for at in (0, 2)] == ["first", "second"]


def test_event_values_may_be_anything(workshop: Workshop) -> None:
    run = workshop.opened()
    run.event("found", path=Path("ä"), number=1.5)
    line = json.loads((workshop.folder / "events.jsonl").read_text(encoding="utf-8"))
    assert (line["event"], line["path"], line["number"]) == ("found", "ä", 1.5)


def test_missing_input_names_the_command(workshop: Workshop) -> None:
    with pytest.raises(MissingInputError) as caught:
        workshop.run("use")
    assert caught.value.fix == f"run: pipeline make {workshop.folder}"
    assert not (workshop.folder / "use.partial").exists()


# options --------------------------------------------------------------------------------------


def toml(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_flag_beats_file_beats_the_runs_own_beats_default(
    workshop: Workshop, tmp_path: Path
) -> None:
    def resolved(file: Path | None = None, **flags: Any) -> MakeOptions:
        run = Run(workshop.folder, workshop.stages)
        run.resolve(flags, file)
        return run.options("make", MakeOptions)

    file = toml(tmp_path / "plan.toml", '[make]\nsize = 3\nrecipe = "filed"\n')
    assert resolved() == MakeOptions()
    assert resolved(size=2, recipe="flagged") == MakeOptions(size=2, recipe="flagged")
    assert resolved() == MakeOptions(size=2, recipe="flagged")  # the run's own
    assert resolved(file) == MakeOptions(size=3, recipe="filed")
    assert resolved(file, size=4) == MakeOptions(size=4, recipe="filed")
    assert resolved() == MakeOptions(size=4, recipe="filed")


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"source": Path("a folder/weights.pt"), "often": True, "share": 1e-7},
        {"recipe": 'quotes " and \\ and\nlines'},
        {"recipe": "😀 ä"},
        {"share": 1e300, "size": 0},
    ],
)
def test_run_toml_round_trips(workshop: Workshop, flags: dict[str, Any]) -> None:
    first, second = workshop.opened(**flags), workshop.opened()
    for name, kind in (("make", MakeOptions), ("use", UseOptions)):
        assert second.options(name, kind) == first.options(name, kind)
    for name, value in flags.items():
        kind = MakeOptions if hasattr(MakeOptions(), name) else UseOptions
        found = getattr(second.options("make" if kind is MakeOptions else "use", kind), name)
        assert found == value
        assert type(found) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("[bake]\nsize = 1\n", "[bake] is no stage", "make, use"),
        ("size = 1\n", "[size] is no stage", "make, use"),
        ("[make]\nsise = 1\n", "[make] has no option 'sise'", "size, source, recipe"),
        ('[make]\nsize = "many"\n', "size = 'many' will not do: it is a whole number", "how much"),
        ("[make]\nsize = 1.5\n", "it is a whole number", "how much"),
        ("[make]\nsize = true\n", "it is a whole number", "how much"),
        ("[make]\nsize = -1\n", "it is at least 0", "how much"),
        ("[make]\nsource = 3\n", "it is a path", "a file that is read"),
        ("[make]\nrecipe = ['a']\n", "it is a text", "a word"),
        ("[use]\noften = 'yes'\n", "it is true or false", "again and again"),
        ("[use]\nshare = nan\n", "it is a finite number", "of it"),
    ],
)
def test_wrong_toml_is_one_line(
    workshop: Workshop, tmp_path: Path, text: str, message: str, fix: str
) -> None:
    file = toml(tmp_path / "plan.toml", text)
    with pytest.raises(DeployError) as caught:
        Run(workshop.folder, workshop.stages).resolve({}, file)
    assert caught.value.message.startswith("plan.toml: ")
    assert message in caught.value.message
    assert fix in caught.value.fix
    assert not workshop.folder.exists()


@pytest.mark.parametrize("content", [b"[make\n", b"\xff\xfe", b"[make]\nsize = 1\nsize = 2\n"])
def test_what_is_no_toml_is_one_line(workshop: Workshop, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "plan.toml"
    file.write_bytes(content)
    with pytest.raises(DeployError, match="is not readable TOML"):
        Run(workshop.folder, workshop.stages).resolve({}, file)


# locking --------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from pipeline.run import Run
with Run(Path(sys.argv[1]), {}).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused(workshop: Workshop) -> None:
    command = [sys.executable, "-c", HOLD, str(workshop.folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == "locked\n"
        run = Run(workshop.folder, {})
        with pytest.raises(DeployError, match=rf"\(pid {holder.pid}\)"), run.locked():
            pass
        holder.communicate()
    with run.locked():
        assert (workshop.folder / ".lock").read_text() == str(os.getpid())


# faults of the disk ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "told", "fix"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left", "free the disk"),
        (OSError(errno.EACCES, "Permission denied", "x.bin"), "(x.bin)", "make it writable"),
        (OSError(errno.EIO, "Input/output error", "a", None, "b"), "(b)", "mend that"),
        (SafetensorError("Error while serializing: I/O error"), "serializing", "free the disk"),
    ],
)
def test_faults_in_a_stage_are_one_line(
    workshop: Workshop, fault: Exception, told: str, fix: str
) -> None:
    def fail(_: Context) -> None:
        raise fault

    workshop.works["make"] = fail
    with pytest.raises(DeployError) as caught:
        workshop.run("make")
    assert caught.value.message.startswith("make stopped: ")
    assert told in caught.value.message
    assert fix in caught.value.fix
    assert caught.value.__cause__ is fault
    assert not (workshop.folder / "make").exists()


def test_bugs_in_a_stage_show_themselves(workshop: Workshop) -> None:
    def fail(_: Context) -> None:
        raise KeyError("bug")

    workshop.works["make"] = fail
    with pytest.raises(KeyError, match="bug"):
        workshop.run("make")


@pytest.mark.parametrize("fails", ["write", "replace"])
def test_atomic_write_leaves_the_old_file_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, b"old")

    def full(self: Path, data: Any) -> None:
        if fails == "write":
            os.write(os.open(self, os.O_CREAT | os.O_WRONLY), data[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    name = "write_bytes" if fails == "write" else "replace"
    with monkeypatch.context() as patch:
        patch.setattr(Path, name, full)
        with pytest.raises(DeployError, match=r"cannot write file\.json: No space left") as caught:
            write_atomically(path, b"new")
    assert "free the disk" in caught.value.fix
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_atomic_copy_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")

    def cut_short(_: Path, path: Path) -> None:
        path.write_bytes(b"01234")
        raise OSError(errno.ENOSPC, "No space left on device", "source", None, "copy")

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "copyfile", cut_short)
        with pytest.raises(DeployError, match="cannot write copy: No space left"):
            copy_atomically(source, tmp_path / "copy")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
    copy_atomically(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"0123456789"
