"""A bundle opens only when it is exactly what was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipeline import bundle as bundle_module
from pipeline import manifest as manifest_module
from pipeline.bundle import Bundle, Manifest, write_bundle
from pipeline.errors import BundleError, EngineError, FingerprintError
from targets import load_target
from targets.base import TargetOptions

SHAPE = (1, 3, 4, 4)
FILES = {
    "engine.json",
    "certificate.json",
    "model.onnx",
    "report.html",
    "triton/tiny/config.pbtxt",
    "triton/tiny/1/model.onnx",
}


def tiny_model() -> onnx.ModelProto:
    """Logits (1, 3) are the channel means of an image (1, 3, 4, 4)."""
    float32 = onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["output"]),
    ]
    images = onnx.helper.make_tensor_value_info("input", float32, SHAPE)
    logits = onnx.helper.make_tensor_value_info("output", float32, (1, 3))
    graph = onnx.helper.make_graph(nodes, "tiny", [images], [logits])
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)


def manifest_of(**changes: Any) -> Manifest:
    target = load_target("fake", TargetOptions(batch=1, threads=2))
    values: dict[str, Any] = {
        "name": "tiny",
        "wgates": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "target": "fake",
        "threads": 2,
        "options": {},
        "batch": 1,
        "precision": "fp32",
        "input_shape": SHAPE,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.2, 0.2),
        "classes": ("cat", "chién", "犬"),
        "engine": "engine.json",
        "fingerprint": target.fingerprint().to_json(),
    }
    return Manifest(**{**values, **changes})


def contents(folder: Path) -> dict[str, Path | bytes]:
    model = tiny_model().SerializeToString()
    target = load_target("fake", TargetOptions(batch=1, threads=2))
    return {
        "engine.json": target.build(model, folder / "built.json").engine,
        "certificate.json": json.dumps({"schema": 1, "verdict": "met"}).encode(),
        "model.onnx": model,
        "report.html": b"<!doctype html>",
        "triton/tiny/config.pbtxt": b'name: "tiny"\n',
        "triton/tiny/1/model.onnx": model,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle on disk."""
    made = tmp_path / "bundle"
    made.mkdir()
    write_bundle(made, manifest_of(), contents(tmp_path))
    return made


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's JSON in place."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    put_manifest(folder, json.dumps(document).encode())


def put_manifest(folder: Path, data: bytes) -> None:
    """A manifest with the digest that belongs to it, as who forges a bundle would write it."""
    (folder / "manifest.json").write_bytes(data)
    line = f"{hashlib.sha256(data).hexdigest()}  manifest.json\n"
    (folder / "manifest.sha256").write_text(line)


def refused(folder: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        Bundle.open(folder)
    assert caught.value.fix
    assert "\n" not in str(caught.value)


# what opens -------------------------------------------------------------------------------


def test_an_untouched_bundle_opens_and_says_what_was_written(folder: Path, tmp_path: Path) -> None:
    opened = Bundle.open(folder)
    assert opened.manifest == Manifest(
        **{**vars(manifest_of()), "files": dict(opened.manifest.files)}
    )
    assert set(opened.manifest.files) == FILES
    model = (folder / "model.onnx").read_bytes()
    record = opened.manifest.files["model.onnx"]
    assert (record.sha256, record.bytes) == (hashlib.sha256(model).hexdigest(), len(model))
    assert opened.certificate == {"schema": 1, "verdict": "met"}
    assert opened.path("triton/tiny/1/model.onnx").read_bytes() == model


def test_a_moved_or_linked_bundle_opens(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(moved)
    assert Bundle.open(tmp_path / "link").manifest == Bundle.open(moved).manifest


def test_unicode_file_names_open(tmp_path: Path) -> None:
    made = tmp_path / "bundle"
    made.mkdir()
    write_bundle(made, manifest_of(), {**contents(tmp_path), "notes/café 犬.txt": b"x"})
    assert Bundle.open(made).path("notes/café 犬.txt").read_bytes() == b"x"


def test_the_engine_answers(folder: Path) -> None:
    images = np.arange(2 * 48, dtype=np.float32).reshape(2, 3, 4, 4)
    with Bundle.open(folder).load() as engine:
        np.testing.assert_allclose(engine.infer(images), images.mean((2, 3)))


# what does not open -----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_bit_is_found(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, "SHA-256 differs")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_truncated_file_is_found(folder: Path, name: str) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size - 1)
    refused(folder, "bytes, the manifest says")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"'{name}' is missing")


def test_a_truncated_manifest_is_found(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 300)
    refused(folder, "manifest.json has changed: its SHA-256 differs from manifest.sha256")
    put_manifest(folder, (folder / "manifest.json").read_bytes())
    refused(folder, "no valid JSON")


def test_no_manifest_no_folder_and_a_file_are_no_bundle(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    refused(folder, "has no manifest.json")
    refused(folder / "nowhere", "is no folder")
    refused(folder / "model.onnx", "is no folder")


@pytest.mark.parametrize("name", ["extra.txt", "triton/tiny/2/model.onnx", ".hidden"])
def test_an_extra_file_is_found(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    refused(folder, f"'{name}' is not in the manifest")


def test_a_symlink_is_refused_even_to_the_same_content(folder: Path, tmp_path: Path) -> None:
    outside = (folder / "model.onnx").rename(tmp_path / "outside.onnx")
    (folder / "model.onnx").symlink_to(outside)
    refused(folder, "'model.onnx' is a link or a special file")


def test_a_symlinked_parent_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = (folder / "triton").rename(tmp_path / "outside")
    (folder / "triton").symlink_to(outside, target_is_directory=True)
    refused(folder, "'triton' is a link or a special file")


def test_a_fifo_is_refused_instead_of_waited_for(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")
    refused(folder, "link or a special file")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "triton/../../x",
        "/etc/hostname",
        "C:/x",
        "C:x",
        "a\\b",
        "",
        ".",
        "./model.onnx",
        "triton//x",
        "triton/",
        "x\u0000y",
        "x\ny",
        "\u202egnp.exe",
        "\ud800",
        "e\u0301.txt",
        "manifest.json",
        "Manifest.JSON/x",
        "manifest.sha256",
        "manifest.sig",
        "nul.txt",
        "triton/COM1",
        "dot.",
        "space ",
        "what?",
        "a" * 241,
    ],
)
def test_a_name_that_could_leave_the_folder_or_deceive_is_refused(folder: Path, name: str) -> None:
    record = {"sha256": "0" * 64, "bytes": 0}
    edit(folder, lambda m: m["files"].update({name: record}))
    refused(folder, "no plain relative path|stands for the manifest|longer than")


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    with (folder / "manifest.json").open("ab") as file:
        file.write(b" " * (1 << 20))
    refused(folder, "larger than")


@pytest.mark.parametrize("schema", [0, 1, 3, "2", 2.0, True, None, [2]])
def test_an_unknown_schema_is_refused(folder: Path, schema: object) -> None:
    edit(folder, lambda m: m.update(schema=schema))
    refused(folder, "not of schema 2")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 5),
        ("name", ""),
        ("name", "\u001b[2J"),
        ("target", None),
        ("threads", "2"),
        ("threads", True),
        ("threads", 0),
        ("threads", 10**30),
        ("batch", 1.0),
        ("options", []),
        ("options", {"spinning": [[1]]}),
        ("options", {"spinning": 10**4000}),
        ("options", {"spinning": 1e999}),
        ("batch", 2),
        ("precision", "fp8"),
        ("precision", ["fp32"]),
        ("input_shape", [1, 3, 4]),
        ("input_shape", [1, 3, 4, -4]),
        ("input_shape", "1344"),
        ("mean", [0.5, 0.5]),
        ("mean", ["0", "0", "0"]),
        ("mean", []),
        ("std", [0.2, 0.2, 0.0]),
        ("std", [1, 1, 10**400]),
        ("classes", "cat"),
        ("classes", [1, 2]),
        ("engine", "nowhere.onnx"),
        ("engine", 1),
        ("fingerprint", []),
        ("fingerprint", {"isa": [["deep"]]}),
        ("files", []),
        ("files", {}),
        ("files", {"certificate.json": None}),
        ("files", {"certificate.json": {"sha256": "0" * 64}}),
        ("files", {"certificate.json": {"sha256": "0" * 63, "bytes": 1}}),
        ("files", {"certificate.json": {"sha256": "0" * 64, "bytes": True}}),
        ("files", {"certificate.json": {"sha256": "0" * 64, "bytes": -1}}),
    ],
)
def test_a_field_of_the_wrong_type_is_refused(folder: Path, key: str, value: object) -> None:
    edit(folder, lambda m: m.update({key: value}))
    refused(folder, "manifest|batch|mean and std")


@pytest.mark.parametrize("key", sorted(vars(manifest_of())))
def test_a_missing_field_is_refused(folder: Path, key: str) -> None:
    edit(folder, lambda m: m.pop(key))
    refused(folder, f"'{key}'|schema")


def test_an_unknown_field_is_refused_and_shown_short(folder: Path) -> None:
    edit(folder, lambda m: m.update({"x" * 5000: 1}))
    refused(folder, r"^the manifest lacks 'x{80}\.\.\.', or should not have it")


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 2, "schema": 2}',
        '{"schema": 2, "files": {"a": 1, "a": 2}}',
        '{"schema": NaN}',
        '{"schema": -Infinity}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 10_000,
        '{"schema": 1} trailing',
        "\ufeff{}",
        "",
    ],
    ids=lambda text: text[:30],
)
def test_json_that_is_ambiguous_or_abusive_is_refused(folder: Path, text: str) -> None:
    put_manifest(folder, text.encode())
    refused(folder, "no valid JSON")


@pytest.mark.parametrize("data", [b"\xff\xfe{}", b"\x80"])
def test_bytes_that_are_no_utf8_are_refused(folder: Path, data: bytes) -> None:
    put_manifest(folder, data)
    refused(folder, "no valid JSON")


@pytest.mark.parametrize("text", ["[]", "null", "1", '"x"'])
def test_a_manifest_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    put_manifest(folder, text.encode())
    refused(folder, "no JSON object")


def test_no_digest_and_a_wrong_digest_are_refused(folder: Path) -> None:
    line = (folder / "manifest.sha256").read_bytes()
    for wrong in (b"", line[:-1], line + b"\n", b"0" * 64 + line[64:], line.upper()):
        (folder / "manifest.sha256").write_bytes(wrong)
        refused(folder, "SHA-256 differs from manifest.sha256|larger than")
    (folder / "manifest.sha256").unlink()
    refused(folder, "has no manifest.sha256")


def test_the_digest_is_one_that_sha256sum_checks(folder: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "manifest.sha256"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "manifest.json: OK\n")


def test_a_changed_manifest_that_reads_well_is_refused(folder: Path) -> None:
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(text.replace("0.4", "0.5"), encoding="utf-8")
    refused(folder, "manifest.json has changed")


def test_an_empty_folder_is_found(folder: Path) -> None:
    (folder / "triton" / "tiny" / "2").mkdir()
    refused(folder, "'triton/tiny/2' is empty")


def test_names_that_differ_in_case_only_are_refused(folder: Path) -> None:
    (folder / "Report.html").write_bytes(b"")
    edit(folder, lambda m: m["files"].update({"Report.html": m["files"]["report.html"]}))
    refused(folder, "differ in case only")


def test_too_much_is_refused_before_anything_is_read(folder: Path) -> None:
    edit(folder, lambda m: m["files"]["model.onnx"].update(bytes=1 << 40))
    refused(folder, "lists more than")
    record = {"sha256": "0" * 64, "bytes": 0}
    edit(folder, lambda m: m["files"].update({f"x/{i}": record for i in range(3000)}))
    refused(folder, "lists more than 2048 files")


def test_a_folder_of_very_many_files_or_very_deep_is_refused(folder: Path) -> None:
    deep = folder / "/".join("d" * 20)
    deep.mkdir(parents=True)
    refused(folder, "too deep")


def test_a_file_that_becomes_a_link_or_changes_after_opening_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    opened = Bundle.open(folder)
    (folder / "certificate.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match="has changed"):
        _ = opened.certificate
    outside = (folder / "report.html").rename(tmp_path / "outside")
    (folder / "report.html").symlink_to(outside)
    with pytest.raises(BundleError, match="cannot read"):
        opened.read("report.html")
    assert opened.read("model.onnx") == tiny_model().SerializeToString()


# order and imports ------------------------------------------------------------------------


def test_only_the_manifest_is_parsed_before_the_hashes_agree(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    parse = manifest_module.parse_json

    def recorded(data: bytes, name: str) -> Any:
        parsed.append(name)
        return parse(data, name)

    monkeypatch.setattr(bundle_module, "parse_json", recorded)
    assert Bundle.open(folder).certificate
    assert parsed == ["manifest.json", "certificate.json"]
    parsed.clear()
    (folder / "certificate.json").write_bytes(b"[" * (folder / "certificate.json").stat().st_size)
    refused(folder, "SHA-256 differs")
    assert parsed == ["manifest.json"]


def test_opening_imports_no_torch_and_no_runtime(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pipeline.bundle import Bundle;"
        "Bundle.open(Path(sys.argv[1])).certificate;"
        "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize(
    "text", ["[]", "[" * 50_000, '{"a": 1, "a": 2}', "nonsense", "{}", '{"schema": 2}']
)
def test_a_certified_but_senseless_certificate_is_an_error(tmp_path: Path, text: str) -> None:
    made = tmp_path / "bundle"
    made.mkdir()
    write_bundle(made, manifest_of(), {**contents(tmp_path), "certificate.json": text.encode()})
    opened = Bundle.open(made)
    with pytest.raises(BundleError, match=r"certificate\.json"):
        _ = opened.certificate


# loading ----------------------------------------------------------------------------------


def test_another_fingerprint_is_refused_by_field_unless_told(folder: Path) -> None:
    edit(folder, lambda m: m["fingerprint"].update(runtime="fake 0", clocks="locked"))
    opened = Bundle.open(folder)
    with pytest.raises(FingerprintError) as caught:
        opened.load()
    assert "runtime: fake 0 != fake 1" in caught.value.message
    assert "clocks: locked != none" in caught.value.message
    assert "threads" not in caught.value.message
    with opened.load(any_fingerprint=True) as engine:
        assert engine.input_shape == SHAPE


@pytest.mark.parametrize("change", [{"no_such_field": 1}, {"isa": 5}])
def test_a_fingerprint_of_another_form_is_refused(folder: Path, change: dict[str, Any]) -> None:
    edit(folder, lambda m: m["fingerprint"].update(change))
    with pytest.raises(BundleError, match="fingerprint"):
        Bundle.open(folder).load()


def test_an_engine_of_another_shape_is_refused(folder: Path) -> None:
    edit(folder, lambda m: m.update(input_shape=[1, 3, 4, 5]))
    with pytest.raises(BundleError, match=r"takes \(1, 3, 4, 4\), not \(1, 3, 4, 5\)"):
        Bundle.open(folder).load()


def test_a_listed_file_that_is_no_engine_is_the_target_s_error(folder: Path) -> None:
    edit(folder, lambda m: m.update(engine="report.html"))
    with pytest.raises(EngineError):
        Bundle.open(folder).load()


def test_an_unlisted_path_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match="has no"):
        Bundle.open(folder).path("../built.json")


# writing ----------------------------------------------------------------------------------


def test_a_bundle_is_written_into_an_empty_folder_only(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not empty"):
        write_bundle(folder, manifest_of(), contents(tmp_path))


@pytest.mark.parametrize("name", ["../x", "/x", "manifest.json"])
def test_what_could_not_be_opened_is_not_written(tmp_path: Path, name: str) -> None:
    made = tmp_path / "bundle"
    made.mkdir()
    with pytest.raises(BundleError):
        write_bundle(made, manifest_of(), {**contents(tmp_path), name: b""})
    assert list(made.iterdir()) == []
    assert not (tmp_path / "x").exists()


def test_a_manifest_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    made = tmp_path / "bundle"
    made.mkdir()
    with pytest.raises(BundleError, match="precision"):
        write_bundle(made, manifest_of(precision="fp8"), contents(tmp_path))
    assert not (made / "manifest.json").exists()


def test_a_source_that_vanished_is_an_error(tmp_path: Path) -> None:
    made = tmp_path / "bundle"
    made.mkdir()
    with pytest.raises(BundleError, match="cannot write the bundle"):
        write_bundle(made, manifest_of(), {**contents(tmp_path), "x": tmp_path / "nowhere"})


def test_a_full_disk_is_told_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "bundle"
    made.mkdir()
    files = contents(tmp_path)

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match="No space left on device") as caught:
        write_bundle(made, manifest_of(), files)
    assert caught.value.fix == "free the disk and run the same command again"
