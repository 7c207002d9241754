"""A network with enough widths for an LPNet, one residual, and a few milliseconds a step."""

import torch
from torch import nn


def conv(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class Tiny(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv1, self.bn1 = conv(channels, 32, stride=2), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = conv(32, 64), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = conv(64, 64), nn.BatchNorm2d(64)
        self.conv4, self.bn4 = conv(64, 64), nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        y = torch.relu(self.bn3(self.conv3(x)))
        x = torch.relu(self.bn4(self.conv4(y)) + x)
        return self.linear(x.mean((2, 3)))


def tiny(num_classes):
    return Tiny(1, num_classes)


def tiny3(num_classes):
    return Tiny(3, num_classes)


def tiny4(num_classes):
    return Tiny(4, num_classes)
