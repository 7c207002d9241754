"""Schemas of what is stored, for those who must not import torch to know them."""

from __future__ import annotations

LPNET = 4  # of lpnet.json
