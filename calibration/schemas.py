"""Schemas of what is stored, for those who must not import torch to know them."""

from __future__ import annotations

LPNET = 5  # of lpnet.json; 4 stated the error of nearly dense networks, too
