"""``python tiny_search_main.py search ...``: a command with the method of :mod:`tiny_search`."""

from __future__ import annotations

import sys
from importlib import import_module

import tiny_search
import torch

from vpgfast.models.registry import METHODS

METHODS[tiny_search.NAME] = tiny_search.PLACE
torch.set_num_threads(1)
sys.exit(import_module(f"vpgfast.{sys.argv[1]}").main(sys.argv[2:]))
