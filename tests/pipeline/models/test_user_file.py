"""What is said of a user's own file."""

from __future__ import annotations

import pytest

from pipeline.models.user_file import without_folder


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("/home/ada/work/net.py:make", "net.py:make"),
        ("net.py:make", "net.py:make"),
        ("digits", "digits"),
        ("torchvision:resnet50", "torchvision:resnet50"),
    ],
)
def test_the_folder_of_a_users_file_is_not_said(spec: str, said: str) -> None:
    assert without_folder(spec) == said
