"""Layers of published models on top of :mod:`vpgfast.ops`, each loading the state dict of the code it follows."""

from .temporal_map_conv2d import TemporalMapConv2d

__all__ = ["TemporalMapConv2d"]
