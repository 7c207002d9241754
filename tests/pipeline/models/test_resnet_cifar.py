import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.resnet_cifar import CifarResNet, PaddedSubsample

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def names_of(blocks: int, *, projections: bool) -> set[str]:
    keys = {"conv1.weight", "linear.weight", "linear.bias"} | {f"bn1.{name}" for name in BATCH_NORM}
    for stage in (1, 2, 3):
        for block in range(blocks):
            for part in (1, 2):
                prefix = f"layer{stage}.{block}"
                keys.add(f"{prefix}.conv{part}.weight")
                keys |= {f"{prefix}.bn{part}.{name}" for name in BATCH_NORM}
    if projections:
        for stage in (2, 3):
            keys.add(f"layer{stage}.0.shortcut.0.weight")
            keys |= {f"layer{stage}.0.shortcut.1.{name}" for name in BATCH_NORM}
    return keys


@pytest.mark.parametrize("blocks", [3, 5, 9])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_state_dict_names(blocks, shortcut):
    model = CifarResNet(blocks, 10, shortcut=shortcut)
    assert set(model.state_dict()) == names_of(blocks, projections=shortcut == "B")


def test_parameter_count_is_that_of_the_paper():
    parameters = CifarResNet(3, 10, shortcut="A").parameters()
    assert sum(value.numel() for value in parameters) == 269_722  # "0.27M" in table 6


def test_padded_subsample_puts_a_quarter_of_the_new_width_on_each_side():
    x = torch.arange(4 * 4 * 4, dtype=torch.float32).reshape(1, 4, 4, 4)
    expected = torch.zeros(1, 8, 2, 2)
    for channel in range(4):
        for row in range(2):
            for column in range(2):
                expected[0, channel + 2, row, column] = x[0, channel, 2 * row, 2 * column]
    assert torch.equal(PaddedSubsample(4, 8)(x), expected)


def test_option_a_block_adds_the_padded_input():
    torch.manual_seed(0)
    block = CifarResNet(3, 10, shortcut="A").eval().layer2[0]
    x = torch.randn(2, 16, 8, 8)
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    quarter = torch.zeros(2, 8, 4, 4)
    padded = torch.cat([quarter, x[:, :, ::2, ::2], quarter], dim=1)
    torch.testing.assert_close(block(x), F.relu(branch + padded))


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("size", [32, 40])
def test_forward_gives_one_logit_a_class_at_any_size(shortcut, size):
    model = CifarResNet(3, 7, shortcut=shortcut).eval()
    assert model(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_forward_after_a_block_was_sliced():
    model = CifarResNet(3, 10, shortcut="A").eval()
    block = model.layer3[1]
    block.conv1 = nn.Conv2d(64, 5, 3, padding=1, bias=False)
    block.bn1 = nn.BatchNorm2d(5)
    block.conv2 = nn.Conv2d(5, 64, 3, padding=1, bias=False)
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)
