"""Physical pruning of a torch module through the slice map: the only code that edits layers."""

from __future__ import annotations

import copy

import torch
from torch import nn

from calibration.skeleton import Skeleton
from calibration.widths import GRAPH_ONLY, Plan
from pipeline.errors import GroupsError
from pipeline.pruning.emptied import empty


def shrink(model: nn.Module, skeleton: Skeleton, plan: Plan) -> nn.Module:
    """A new, compact model that holds exactly the plan's channels; the given one is untouched.

    GroupsError if the plan is for another network, or the model was already shrunk.
    """
    if plan.skeleton_sha256 != skeleton.sha256:
        raise GroupsError("the plan was made for another skeleton", fix="run: pipeline prune")
    skeleton.groups.check(plan)
    _check_dense(model, skeleton)
    dropped = {
        key: torch.from_numpy(rows)
        for key, rows in skeleton.groups.dropped_rows(plan).items()
        if len(rows) and not key[0].startswith(GRAPH_ONLY)
    }
    weights = dict(model.named_parameters(remove_duplicate=False))
    cut = [weights[tensor] for tensor, _ in dropped if tensor in weights]
    small = copy.deepcopy(model, {id(weight): weight for weight in cut})  # replaced just below
    tensors = {*weights, *dict(model.named_buffers(remove_duplicate=False))}
    for (tensor, dim), rows in dropped.items():
        if tensor in tensors:
            _delete_rows(small, tensor, dim, rows)
        else:
            _count_down(small, tensor, len(rows))
    for module in small.modules():
        _refresh_sizes(module)
    empty(small, skeleton.groups.removed(plan.widths()))
    return small


def _check_dense(model: nn.Module, skeleton: Skeleton) -> None:
    state = model.state_dict()
    for name, shape in skeleton.parameters.items():
        if name not in state:
            raise GroupsError(f"the model has no tensor {name}", fix="run: pipeline trace")
        if tuple(state[name].shape) != shape:
            raise GroupsError(
                f"{name} is {tuple(state[name].shape)}, the dense network has {shape}: "
                "a plan is applied once, to the dense network",
                fix="load the dense weights, or use the compact ones as they are",
            )


def _count_down(model: nn.Module, attribute: str, gone: int) -> None:
    """Lower a number that counts channels: `conv.groups`, or `mixed.splits.0` in a list."""
    path, _, leaf = attribute.rpartition(".")
    if leaf.isdigit():
        path, _, name = path.rpartition(".")
        owner = model.get_submodule(path)
        sizes = list(getattr(owner, name))
        sizes[int(leaf)] -= gone
        setattr(owner, name, type(getattr(owner, name))(sizes))
    else:
        owner = model.get_submodule(path)
        setattr(owner, leaf, getattr(owner, leaf) - gone)


def _delete_rows(model: nn.Module, tensor: str, dim: int, rows: torch.Tensor) -> None:
    path, _, leaf = tensor.rpartition(".")
    owner = model.get_submodule(path)
    old = getattr(owner, leaf)
    keep = torch.ones(old.shape[dim], dtype=torch.bool)
    keep[rows] = False
    new = old.detach().index_select(dim, keep.nonzero().ravel().to(old.device)).clone()
    if isinstance(old, nn.Parameter):
        replaced = nn.Parameter(new, requires_grad=old.requires_grad)
        for module in model.modules():  # a shared weight has several owners
            for name, parameter in module._parameters.items():
                if parameter is old:
                    module._parameters[name] = replaced
    else:
        owner._buffers[leaf] = new


def _refresh_sizes(module: nn.Module) -> None:
    """Make the attributes that torch layers repeat agree with their tensors."""
    if isinstance(module, nn.Conv2d):
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.ConvTranspose2d):
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = module.running_mean if module.weight is None else module.weight
        if sized is not None:
            module.num_features = sized.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
