"""How fast the ops are meant to be on two CPU cores, and why where they are not; what they are comes from the rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """``times`` faster than the best peer, or than what the field's published code does (``over_field``)."""

    op: str
    shape: str
    forward: float
    both: float | None = None  # forward and backward together
    over_field: bool = False
    why_short: str = ""  # shown only where a target is missed


_SAME_PRODUCT = (
    "The best peer does the same work in the same order, our own finding written in plain PyTorch: both are bound by "
    "one matrix product, whose time at the library's own rate is the floor."
)
_ATTENTION = (
    "Bound by five-row products and by reading keys and values and writing their gradients; the two overlap in part. "
    "The rate of a large matrix product, which the floor assumes, is not to be had with five rows."
)
_ENCODER = (
    "The video encoder's matrix products, the same for all ways, are most of the step. The column before shows what "
    "could be had if all of them ran at the rate of one large product and the rest of the step took no time."
)
_ON_THE_XEON = (
    "Met on the EPYC. On the Xeon the kernel reaches much less of the floor than there; why has not been looked into."
)
TARGETS = (
    Target("proposal_conv", "B=16 C=512 D=512 T=32 N=4x1 P=146", 6, 5, why_short=_SAME_PRODUCT),
    Target("proposal_conv", "B=4 C=128 D=512 T=128 N=4x1 P=942", 25, 15, why_short=_SAME_PRODUCT),
    Target(
        "temporal_map_max_pool",
        "B=16 C=512 T=32",
        4,
        10,
        why_short="The peer is compiled and fused. Forward runs at the bandwidth of memory; backward is a chain of "
        "additions down the rows of every map, which the reading of the map's gradient hides only in part.",
    ),
    Target("temporal_map_conv2d", "B=16 C=D=512 T=16 K5L8 layer 8", 2.2, 2),
    Target("temporal_map_conv2d", "B=2 C=D=512 T=32 K9L4 layer 4", 2.2, 2, why_short=_ON_THE_XEON),
    Target("temporal_map_conv2d", "B=2 C=D=512 T=64 K5L8 layer 8", 2.2, 2, why_short=_ON_THE_XEON),
    Target("temporal_iou", "L=64 N=1024 M=8", 5, over_field=True),
    Target("temporal_iou_map", "B=32 M=8 T=64", 5, over_field=True),
    Target("temporal_nms", "L=32 N=1104 top_k=5", 5, over_field=True),
    Target(
        "temporal_map_bce",
        "B=32 M=8 T=64",
        2,
        2,
        why_short="Bound by the exponential and the logarithm of every cell, which a floor of bytes does not count.",
    ),
    Target("anchor_cross_attention", "B=32 H=8 Q=5 T=256 d=32 one k_pos", 1.5, 3, why_short=_ATTENTION),
    Target(
        "ordered_suppression_scan",
        "F: B=4 M=8 D=512 T=32",
        20,
        20,
        over_field=True,
        why_short="Nearly all of it is the one product z = w . F, which reads F once and, backward, writes its "
        "gradient once; the scan itself is the case below it, named z.",
    ),
    Target(
        "pairwise_relevance",
        "N=1344 M=42 H=512",
        3,
        3,
        why_short="Add, compare and multiply-add for every n, m and h are three instructions where the floor of "
        "arithmetic counts a multiply-add as one; compiled PyTorch fuses the same three, and keeps no [N, M, H] either "
        "until it needs a gradient.",
    ),
    Target("marn proposals", "ActivityNet B=4 d_v=4096 T=128 P=942", 8, 8, over_field=True),
    Target("marn", "ActivityNet B=4 d_v=4096 T=128 P=942", 3, 3, over_field=True),
    Target("wsra", "Charades-STA B=42 d_v=1024 T=64 H=512", 2, 2, over_field=True),
    Target("siamgtr", "ActivityNet B=32 d_v=500 T=256 D=256 M=4", 3, 3, over_field=True, why_short=_ENCODER),
    Target("siamgtr", "ActivityNet B=32 d_v=500 T=256 D=256 M=4", 1.3, 1.3, why_short=_ENCODER),
    Target("dmr_jrg", "ActivityNet B=4 M=8 K=32 D=512", 6, 6, over_field=True),
    Target("dmr_jrg", "ActivityNet B=4 M=8 K=32 D=512", 1.5, 1.5),
    Target("dmr_jrg", "ActivityNet B=16 M=8 K=32 D=512", 6, 6, over_field=True),
    Target("dmr_jrg", "ActivityNet B=16 M=8 K=32 D=512", 1.5, 1.5),
    Target("temporal_contrast_spans", "B=4 M=4 T=200 up to 200 top_k=5", 50, over_field=True),
    Target("temporal_contrast_spans", "B=1 M=1 T=100000 up to 20000 top_k=1", 50),
    Target(
        "ordered_spans",
        "B=16 M=4 T=200 up to 200",
        50,
        over_field=True,
        why_short="A call of any op from Python is most of the time; of a larger batch it is little.",
    ),
    Target("ordered_spans", "B=128 M=4 T=200 up to 200", 50, over_field=True),
    Target(
        "ordered_spans",
        "B=4 M=8 T=2000 up to 200",
        50,
        over_field=True,
        why_short="Waking a second thread for four paragraphs is most of the time; of a larger batch it is little.",
    ),
    Target("ordered_spans", "B=32 M=8 T=2000 up to 200", 50, over_field=True),
    Target("ordered_spans", "B=1 M=8 T=100000 up to 100000", 50, over_field=True),
    Target("ordered_candidates", "B=4 M=8 P=1000", 50, over_field=True),
)
