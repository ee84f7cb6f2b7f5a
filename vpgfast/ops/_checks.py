"""What every op asks of its arguments: the dtype to compute in, and checks that name the argument that is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that ratios and sums are formed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_shape(name: str, tensor: Tensor, shape: tuple[str | int, ...]) -> None:
    """``shape`` holds a letter where any size will do, a number where none other will; ``"..."`` may lead it."""
    sizes = shape[1:] if shape and shape[0] == "..." else shape
    fits = tensor.dim() >= len(sizes) if sizes is not shape else tensor.dim() == len(sizes)
    tail = tensor.shape[tensor.dim() - len(sizes) :] if fits else ()
    if not fits or any(isinstance(want, int) and size != want for want, size in zip(sizes, tail, strict=True)):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be [{wanted}]")


def check_floating(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATING:
        raise ValueError(f"{name} has dtype {tensor.dtype}; it must be float32, float64, bfloat16 or float16")


def check_same_dtype(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Of the same dtype, or cast to one by the autocast region that this runs in, which leaves float64 as it is."""
    check_floating(name, tensor)
    if tensor.dtype == other.dtype:
        return
    device = other.device.type
    cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if not cast or torch.float64 in (tensor.dtype, other.dtype):
        raise ValueError(f"{name} has dtype {tensor.dtype}; it must be {other.dtype}, that of {other_name}")


def check_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {other.device}, where {other_name} is")


def check_mask(name: str, mask: Tensor | None, shape: tuple[int, ...], other_name: str, other: Tensor) -> None:
    """A bool tensor of this shape where ``other`` is, or none at all."""
    if mask is not None:
        check_shape(name, mask, shape)
        check_same_device(name, mask, other_name, other)
        if mask.dtype != torch.bool:
            raise ValueError(f"{name} has dtype {mask.dtype}; it must be torch.bool")
