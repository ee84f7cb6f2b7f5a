"""The registry that finds a method by its name. A method's settings are found without its network, so without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from vpgfast.models.configs.base import MethodConfig
    from vpgfast.models.method import Method


class Place(NamedTuple):
    """Where the class of a method and the dataclass of its settings are, each as MODULE:NAME."""

    method: str
    config: str


METHODS = {
    "seqpan": Place("vpgfast.models.seqpan:SeqPAN", "vpgfast.models.configs.seqpan:SeqPANConfig"),
    "marn": Place("vpgfast.models.marn:MARN", "vpgfast.models.configs.marn:MARNConfig"),
    "wsra": Place("vpgfast.models.wsra:WSRA", "vpgfast.models.configs.wsra:WSRAConfig"),
    "siamgtr": Place("vpgfast.models.siamgtr:SiamGTR", "vpgfast.models.configs.siamgtr:SiamGTRConfig"),
    "similarity": Place("vpgfast.models.similarity:Similarity", "vpgfast.models.configs.similarity:SimilarityConfig"),
    "plain_alignment": Place(
        "vpgfast.models.plain_alignment:PlainAlignment",
        "vpgfast.models.configs.plain_alignment:PlainAlignmentConfig",
    ),
    "dmr_jrg": Place("vpgfast.models.dmr_jrg:DMRJRG", "vpgfast.models.configs.dmr_jrg:DMRJRGConfig"),
}
"""Each method by its name; imported only when asked for."""


def get_method(name: str) -> type[Method]:
    """The class of a method. Raises ``KeyError`` for an unknown name."""
    return _import(METHODS[name].method)


def get_config(name: str) -> type[MethodConfig]:
    """The dataclass of a method's settings. Raises ``KeyError`` for an unknown name."""
    return _import(METHODS[name].config)


def _import(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
