"""Weights and images that are not what they should be, and unusual sizes of everything."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.faults_place import Fault, Place
from benchmarks.faults_project import Project, require
from benchmarks.faults_run import differences, require_whole

ARRAYS = ("nan_in_train", "nan_in_test", "infinite_in_train", "infinite_in_val")
PICTURES = ("--model", "network.py:tiny3", "--data", "imagefolder:pictures", "--image-size", "16")
HANGS_S = 120.0
NAMES = ("with spaces", "Größe/深層学習", "emoji 🚀 'quoted' & $HOME;")
SECRET = "hunter2-do-not-tell-0123456789"
HOME = "home-of-a-certain-somebody"
TARGETS = ("fake", "ort-cpu")
# flags of whole lines: what is unusual, and how it is asked for
SHAPES: dict[str, tuple[str, ...]] = {
    "10 000 classes": ("--data", "images.py:many_classes", "--train-batch", "256"),
    "batch 1": ("--batch", "1"),
    "batch 256": ("--batch", "256"),
    "1 channel": ("--model", "network.py:tiny"),
    "4 channels": ("--model", "network.py:tiny4", "--data", "images.py:four_channels"),
    "not square": ("--data", "images.py:oblong"),
}


# weights ------------------------------------------------------------------------------------


def bad_weights(place: Place, number: int) -> str:
    import torch
    from safetensors.torch import load_file, save_file

    value, suffix = [(v, s) for v in (np.nan, np.inf) for s in ("safetensors", "pt")][number]
    project = place.project()
    state = load_file(place.finished("fake").run / "prepare" / "dense.safetensors")
    state["conv3.weight"].view(-1)[7] = float(value)
    path = project.folder / f"bad.{suffix}"
    torch.save(state, path) if suffix == "pt" else save_file(state, path)
    return project.call(
        *("prepare", "run", "--config", "plan.toml", "--weights", path.name)
    ).require_told("conv3.weight")


# images -------------------------------------------------------------------------------------


def bad_arrays(place: Place, number: int) -> str:
    project = place.project()
    data = f"images.py:{ARRAYS[number]}"
    said = project.call("prepare", "run", "--config", "plan.toml", "--data", data)
    return said.require_told("NaN or infinite")


def huge_arrays(place: Place, number: int) -> str:
    project = place.project()
    command = ("prepare", "run", "--config", "plan.toml", "--data", "images.py:huge_in_train")
    message = project.call(*command).require_told("dense: ", "lower --dense-lr")
    require(not (project.run / "prepare").exists(), "prepare has its final name")
    return message


def write_pictures(root: Path, *, count: int) -> list[Path]:
    """An image folder of two classes, `count` noise images of 16 pixels in train/."""
    rng, made = np.random.default_rng(0), []
    for split, each in (("train", count // 2), ("test", 10)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(each):
                path = folder / f"{index:04d}.png"
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
                made.append(path)
    return made


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("<svg>no pixels</svg>")


def _bomb(path: Path) -> None:
    """A PNG of a few hundred bytes that says it has 60 000 by 60 000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def _bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(60, len(content), 37):
        content[at] ^= 0x55
    path.write_bytes(bytes(content))


DAMAGES: tuple[Callable[[Path], None], ...] = (_cut, _empty, _text, _bomb, _bits)


def few_bad_files(place: Place, number: int) -> str:
    """One file of 400 is damaged: it is left out and named."""
    project = place.project()
    made = write_pictures(project.folder / "pictures", count=400)
    DAMAGES[number](made[123])
    said = project.call("prepare", "run", "--config", "plan.toml", *PICTURES, timeout_s=HANGS_S)
    said.require_done()
    card = json.loads((project.run / "prepare" / "data_card.json").read_text(encoding="utf-8"))
    require(card["skipped"] == ["train/cat/0123.png"], f"skipped: {card['skipped']}")
    return f"{DAMAGES[number].__name__.strip('_')}: skipped and named in the data card"


def many_bad_files(place: Place, number: int) -> str:
    project = place.project()
    made = write_pictures(project.folder / "pictures", count=100)
    for index, path in enumerate(made[::5]):
        DAMAGES[(index + number) % len(DAMAGES)](path)
    said = project.call("prepare", "run", "--config", "plan.toml", *PICTURES, timeout_s=HANGS_S)
    return said.require_told("are corrupt", "fetch the data again")


def odd_files(place: Place, number: int) -> str:
    """A pipe that nobody writes to; a folder that holds itself."""
    project = place.project()
    folder = project.folder / "pictures" / "train" / "cat"
    made = write_pictures(project.folder / "pictures", count=100)
    command = ("prepare", "run", "--config", "plan.toml", *PICTURES)
    if number == 0:
        os.mkfifo(folder / "pipe.png")
        message = project.call(*command, timeout_s=HANGS_S).require_told("pipe.png")
        return f"a pipe: {message}"
    (folder / "again").symlink_to(folder)
    project.call(*command, timeout_s=HANGS_S).require_done()
    card = json.loads((project.run / "prepare" / "data_card.json").read_text(encoding="utf-8"))
    require(sum(card["counts"].values()) == len(made), f"counted {card['counts']}")
    return "a folder that holds itself: each image counted once"


# whole lines --------------------------------------------------------------------------------


def odd_paths(place: Place, number: int) -> str:
    target, name = ("ort-cpu", "fake", "ort-cpu")[number], NAMES[number]
    project = place.project(name)
    project.line(target).require_done()
    require_whole(project)
    differing = differences(place.finished(target), project, target)
    require(not differing, f"{differing}")
    return f"{target} in {name!r}"


def odd_shape(name: str) -> Callable[[Place, int], str]:
    def try_it(place: Place, number: int) -> str:
        target = TARGETS[number]
        project = place.project()
        project.line(target, *SHAPES[name]).require_done()
        manifest = require_whole(project).manifest
        return f"{target}: input {manifest.input_shape}, {len(manifest.classes)} classes"

    return try_it


def secrets(place: Place, number: int) -> str:
    """Absolute paths under a home folder for all that is named, a secret in the environment."""
    target = TARGETS[number]
    home = place.folder / HOME
    made = place.project(f"{HOME}/work")
    project = Project(made.folder, {"HOME": str(home), "USER": HOME, "API_TOKEN": SECRET})
    at = str(project.folder)
    flags = ("--model", f"{at}/network.py:tiny", "--data", f"{at}/images.py:small")
    project.line(target, *flags, "--out", str(project.run)).require_done()
    require_whole(project)
    files = [path for path in (project.run / "bundle").rglob("*") if path.is_file()]
    told = [
        f"{path.name}: {word.decode()}"
        for path in files
        for word in (HOME.encode(), SECRET.encode(), str(place.folder).encode())
        if word in _readable(path)
    ]
    require(not told, f"told: {told}")
    return f"{target}: neither in any of {len(files)} files"


def _readable(path: Path) -> bytes:
    """The content, and what the fake target's engine wraps once more."""
    import base64

    content = path.read_bytes()
    if path.name == "engine.json":
        content += base64.b64decode(json.loads(content)["onnx"])
    return content


FAULTS = (
    Fault("NaN weights", "numbers", "A weights file holds NaN or an infinite number.",
          "refused by the tensor's name", 4, bad_weights),
    Fault("NaN images", "numbers", "An image holds NaN or an infinite number.", "refused", 4,
          bad_arrays),
    Fault("huge images", "numbers", "An image is finite, but so large that no loss is.",
          "training stops in one line with its fix", 1, huge_arrays),
    Fault("a bad file", "images",
          "One image of 420 is cut short, empty, text, a decompression bomb, or full of flipped "
          "bits.", "left out, and named in the data card", len(DAMAGES), few_bad_files),
    Fault("bad files", "images", "A fifth of the images are such.", "the data is refused",
          2, many_bad_files),
    Fault("odd files", "images", "Among the images are a pipe, and a link to the folder itself.",
          "the pipe is refused, the link not followed twice", 2, odd_files),
    Fault("paths", "shapes", "Spaces, quotes, umlauts, kanji and emoji in the folder's name.",
          "the bundle of a run in a plain folder", 3, odd_paths),
    *(Fault(name, "shapes", f"{name[0].upper()}{name[1:]}, by the whole line.",
            "a bundle that opens", len(TARGETS), odd_shape(name)) for name in SHAPES),
    Fault("secrets", "shapes",
          "Model, data and run named by paths under a home folder, a secret in the environment.",
          "neither in any file of the bundle", len(TARGETS), secrets),
)  # fmt: skip
