"""Two processes train as one: the same weights, the same course, the same checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.pruning.wgates import BudgetMode
from pipeline.training.devices import Place

from .gated import learned_plan
from .small import FABRIC, folder_of, make_data, make_model, recipe, said, train

# sums over two processes are rounded differently: float32, some 15 steps of learning rate 0.1
TOLERANCE = 2e-5

MEMBER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import small
import torch
from safetensors.torch import save_file
from pipeline.evaluation import top1
from pipeline.training import Trainer, Upkeep, decayed, make_fabric, sgd
from pipeline.training.devices import Place

folder, rank, port, options = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
options = json.loads(options)
stop = options.pop("stop", None)
fabric = make_fabric("cpu", "32-true", Place(rank, 2, port))
model, data = small.make_model(seed=rank), small.make_data()  # the leader's weights are taken
model.drop.p = 0.0  # each process draws its own
own = folder / str(rank)
own.mkdir(exist_ok=True)
trainer = Trainer(fabric, data, own, small.Listener(), small.recipe(**options), Upkeep(minutes=0))
steps = iter(range(1, 100))

def on_step():
    if next(steps) == stop:
        raise small.Killed

try:
    trainer.train(
        model,
        sgd(decayed(model, 0.1, 5e-4)),
        lambda x, y: torch.nn.functional.cross_entropy(model(x), y),
        evaluate=lambda: top1(model, data, "val", fabric),
        on_step=on_step,
    )
except small.Killed:
    sys.exit(0)
history = [(e.loss, e.val_top1) for e in trainer.history]
(own / "history.json").write_text(json.dumps({"history": history, "said": small.said(trainer)}))
save_file(model.state_dict(), own / "model.safetensors")
"""


def together(folder: Path, program: str = MEMBER, **options: Any) -> list[dict[str, Any]]:
    """Train in two processes; what each found."""
    port = Place.first(2).port
    members = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(Path(__file__).parent), str(folder)]
            + [str(rank), str(port), json.dumps(options)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for member in members:
        _, told = member.communicate(timeout=120)
        assert member.returncode == 0, told
    if "stop" in options:
        return []
    return [json.loads((folder / str(rank) / "history.json").read_text()) for rank in range(2)]


def alone(folder: Path, **options: Any) -> tuple[nn.Module, list[tuple[float, float]]]:
    model = make_model()
    model.drop.p = 0.0
    _, trainer = train(folder, recipe(**options), model=model)
    assert said(trainer) == []
    return model, [(e.loss, e.val_top1) for e in trainer.history]


def require_same(model: nn.Module, folder: Path) -> None:
    leader, follower = (load_file(folder / str(rank) / "model.safetensors") for rank in range(2))
    for name, value in model.state_dict().items():
        assert torch.equal(leader[name], follower[name]), name
        torch.testing.assert_close(leader[name], value, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.slow  # four interpreters that import torch
def test_two_processes_stopped_and_resumed_give_the_weights_of_one(tmp_path: Path) -> None:
    """66 images in batches of 16: the last batch of an epoch has one image for each process."""
    assert make_data().size("train") % 16 == 2
    model, history = alone(folder_of(tmp_path, "one"), ema=0.9, micro_batch=8)
    # parts of 4 in each process are the 8 images that batch norm sees in one
    together(tmp_path, stop=8, ema=0.9, micro_batch=4)
    assert not (tmp_path / "1" / "dense.checkpoint.safetensors").exists()
    for member in together(tmp_path, ema=0.9, micro_batch=4):
        assert member["said"] == ["dense: resumed after epoch 1, step 2"]
        assert [top1 for _, top1 in member["history"]] == [top1 for _, top1 in history]
        losses = [loss for loss, _ in member["history"]]
        assert losses == pytest.approx([loss for loss, _ in history], rel=1e-5)
    require_same(model, tmp_path)


PRUNER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import gated, small
from pipeline.training import make_fabric
from pipeline.training.devices import Place

folder, rank, port = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
own = folder / str(rank)
own.mkdir()
fabric = make_fabric("cpu", "32-true", Place(rank, 2, port))
found = gated.learned_plan(fabric, small.make_data(), own, **json.loads(sys.argv[5]))
(own / "history.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", get_args(BudgetMode))
def test_two_processes_learn_the_plan_of_one(tmp_path: Path, mode: BudgetMode) -> None:
    alone = learned_plan(FABRIC, make_data(), folder_of(tmp_path, "one"), mode)
    assert min(alone["open"]) < 16  # something was learned
    for member in together(tmp_path, program=PRUNER, mode=mode):
        assert member == json.loads(json.dumps(alone))
