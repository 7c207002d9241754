"""Reads and writes state dicts; nothing in a weights file is ever executed."""

from __future__ import annotations

import pickle
import pickletools
import struct
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.files import disk_faults_told, write_atomically

State = Mapping[str, Tensor]

WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile
NAMED = 3  # keys that a message spells out; the rest are counted

# What torch.load raises for files that are no checkpoints: there is no common base class.
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
_CODE_MESSAGES = (
    "Unsupported global",
    "unsupported GLOBAL",
    "Trying to call reduce",
    "Can only build",
    "Can only create new object",
)
_CODE_OPCODES = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE"}


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the file's tensors into the model; the model is unchanged unless all of them fit."""
    state = _without_prefix(read_state(path), set(model.state_dict()))
    _require_fit(model, state, path)
    _require_finite(state, path)
    fitting = OrderedDict(state)
    # files hold no versions: tensors that fit are of the modules' own (MNASNet refuses None)
    fitting._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    # strict is off for num_batches_tracked alone, which old checkpoints lack
    model.load_state_dict(fitting, strict=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in the file, on the CPU, unwrapped; keys and shapes are as stored."""
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}", fix="check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _unwrapped(_read_torch(path), path)


def save_weights(model_or_state: nn.Module | State, path: Path) -> None:
    """Write a safetensors file; it appears whole or not at all."""
    if isinstance(model_or_state, nn.Module):
        model_or_state = model_or_state.state_dict()
    with disk_faults_told(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(_unshared(model_or_state)))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as failure:
        raise _unreadable(path, failure) from failure


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # torch warns about pickle protocols; the outcome below says all there is to say
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as failure:
        if _holds_code(path, failure):
            raise ModelError(
                f"{path} holds code, not only tensors; it was not executed",
                fix="save the state dict as safetensors: safetensors.torch.save_file(...)",
            ) from failure
        raise _unreadable(path, failure) from failure


def _holds_code(path: Path, failure: BaseException) -> bool:
    if any(text in str(failure) for text in _CODE_MESSAGES):
        return True
    try:
        with path.open("rb") as file:  # pickletools only reads opcodes, it runs none
            return any({op.name for op, _, _ in pickletools.genops(file)} & _CODE_OPCODES)
    except (ValueError, LookupError, OSError, struct.error):
        return False


def _unreadable(path: Path, failure: BaseException) -> ModelError:
    # torch's own text advises weights_only=False, which must not reach a user; name the kind only
    text = str(failure).splitlines()[0][:120] if isinstance(failure, SafetensorError) else ""
    reason = text or type(failure).__name__
    return ModelError(
        f"{path} is truncated or no weights file ({reason})",
        fix="fetch or save the file again; safetensors or a torch state dict",
    )


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ModelError(f"{path} holds {kind}, not a state dict", fix="save model.state_dict()")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(
            f"{path} holds {len(others)} entries that are no tensors: {_some(others)}",
            fix="save model.state_dict() alone, or under the key 'state_dict'",
        )
    return {str(key): value for key, value in content.items()}


def _without_prefix(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """The names without what wrappers put before them, in whatever order they were wrapped."""
    for prefix in PREFIXES:
        foreign = not any(key.startswith(prefix) for key in wanted)
        if foreign and state and all(key.startswith(prefix) for key in state):
            bare = {key.removeprefix(prefix): value for key, value in state.items()}
            return _without_prefix(bare, wanted)
    return state


def _require_fit(model: nn.Module, state: State, path: Path) -> None:
    wanted = model.state_dict()
    missing = [
        key for key in wanted if key not in state and not key.endswith("num_batches_tracked")
    ]
    unexpected = sorted(set(state) - set(wanted))
    reshaped = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if not (missing or unexpected or reshaped):
        return
    if not (missing or unexpected):
        _require_same_head(model, state, reshaped, path=path)
    shapes = [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(wanted[key].shape)} in the model"
        for key in reshaped
    ]
    parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    found = "; ".join(f"{len(keys)} {word}: {_some(keys)}" for word, keys in parts if keys)
    fix = "name the model the weights were trained with"
    if any(".shortcut." in key for key in (*missing, *unexpected)):
        fix += "; wgates:resnet20 has shortcut weights (option B), wgates:resnet20a none (option A)"
    raise ModelError(f"{path} does not fit the model: {found}", fix=fix)


def _require_same_head(model: nn.Module, state: State, reshaped: list[str], *, path: Path) -> None:
    """Classes are the one mismatch users meet daily, so it gets its own words."""
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    if not heads:
        return
    name, head = heads[-1]
    same_inputs = all(
        state[key].shape[1:] == head.state_dict()[key.rpartition(".")[2]].shape[1:]
        for key in reshaped
        if key.rpartition(".")[0] == name
    )
    if same_inputs and {key.rpartition(".")[0] for key in reshaped} == {name}:
        outputs = state[reshaped[0]].shape[0]
        raise ModelError(
            f"{path}: the head {name!r} has {outputs} outputs, the data has "
            f"{head.weight.shape[0]} classes",
            fix="use the data the weights were trained on, or train without weights",
        )


def _require_finite(state: State, path: Path) -> None:
    for key, value in state.items():
        # float() because half-size types of eight bits have no isfinite
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise ModelError(
                f"{path}: {key} holds NaN or infinite values",
                fix="the training diverged; use an earlier checkpoint",
            )


def _unshared(state: State) -> dict[str, Tensor]:
    """Contiguous CPU tensors, each with its own memory: safetensors refuses shared memory."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        result[key] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return result


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more
