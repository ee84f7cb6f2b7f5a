"""What every launcher needs: the tensor's device made current."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device; on the CPU it interprets (``TRITON_INTERPRET=1``)."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
