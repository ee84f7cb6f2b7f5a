"""Layers of video grounding models, built on :mod:`vpgfast.ops`. Needs torch and numpy alone."""

from .boundary_matching import BoundaryMatching

__all__ = ["BoundaryMatching"]
