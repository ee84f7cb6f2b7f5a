from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vpgfast import ops
from vpgfast.ops import proposal_conv, sample_proposals

from .grid import (
    LAYOUTS,
    check_compiles,
    check_deterministic,
    check_registration,
    compare,
    dtypes,
    implementations,
    layouts,
)
from .memory import linux_only, stages
from .test_sample_proposals import bin_mask, random_proposals

# B, C, D, T, P, N, samples per bin
SHAPES = [
    (2, 3, 5, 16, 30, 4, 1),
    (1, 1, 1, 1, 5, 3, 2),
    (2, 20, 70, 33, 70, 3, 2),
    (3, 9, 65, 8, 9, 1, 1),
    (1, 5, 130, 7, 4, 1, 4),
    (2, 7, 6, 40, 11, 3, 2),  # few proposals: the samples come first
    (0, 3, 2, 4, 5, 2, 1),
    (2, 0, 2, 4, 5, 2, 1),
    (2, 3, 0, 4, 5, 2, 1),
    (2, 3, 2, 0, 5, 2, 1),
    (2, 3, 2, 4, 0, 2, 1),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_case(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """x, weight and bias; sizes that give results of about 1, as trained layers do."""
    B, C, D, T, _, N, _ = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, C, T, generator=generator, dtype=torch.float64)
    weight = torch.randn(D, C, N, generator=generator, dtype=torch.float64) / math.sqrt(max(1, C * N))
    return [t.to(dtype) for t in (x, weight, torch.randn(D, generator=generator, dtype=torch.float64))]


def sample_mask_and_conv3d(x: Tensor, proposals: Tensor, weight: Tensor, bias: Tensor, per_bin: int) -> Tensor:
    """The released formulation: multiply by a dense mask, then Conv3d with kernel (N, 1, 1)."""
    T, N = x.shape[2], weight.shape[2]
    mask = torch.stack([bin_mask(start, end, T, N, per_bin) for start, end in proposals.tolist()], -1).to(x.dtype)
    samples = torch.matmul(x, mask.reshape(T, -1)).reshape(*x.shape[:2], N, 1, -1)
    return torch.nn.functional.conv3d(samples, weight[..., None, None], bias)[:, :, 0, 0]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_by_hand(backend: str) -> None:
    x = torch.tensor([[[1.0, 3.0, 7.0], [0.0, 1.0, 0.0]]], requires_grad=True)
    weight = torch.tensor([[[1.0, 10.0], [100.0, 1000.0]]], requires_grad=True)  # [D=1, C=2, N=2]
    bias = torch.tensor([0.5], requires_grad=True)
    proposals = torch.tensor([[0.0, 1.5], [-3.0, -2.0]])
    with ops.backend(backend):
        out = proposal_conv(x, proposals, weight, bias)
        grads = torch.autograd.grad(out, (x, weight, bias), torch.tensor([[[1.0, 2.0]]]))
    # Samples of proposal 0: clip 0, then halfway between clips 1 and 2. Proposal 1 lies before the video.
    assert out.tolist() == [[[1 * 1 + 10 * 5 + 100 * 0 + 1000 * 0.5 + 0.5, 0.5]]]
    assert grads[0].tolist() == [[[1, 5, 5], [100, 500, 500]]]
    assert grads[1].tolist() == [[[1, 5], [0, 0.5]]]
    assert grads[2].tolist() == [3]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_equals_sample_mask_and_conv3d(backend: str) -> None:
    x, weight, bias = (t.requires_grad_() for t in random_case((2, 6, 5, 12, 0, 8, 3), torch.float64))
    proposals = random_proposals(40, T=12)
    expected = sample_mask_and_conv3d(x, proposals, weight, bias, 3)
    incoming = torch.randn_like(expected)
    with ops.backend(backend):
        out = proposal_conv(x, proposals, weight, bias, 3)
        grads = torch.autograd.grad(out, (x, weight, bias), incoming)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, (x, weight, bias), incoming))


@implementations()
@dtypes
@layouts
@shapes
@pytest.mark.parametrize("each_video", [False, True], ids=["shared", "each_video"])
def test_grid(
    device: str, backend: str, dtype: torch.dtype, layout: str, shape: tuple[int, ...], each_video: bool
) -> None:
    B, _, _, T, P, _, per_bin = shape
    inputs = [t.to(device) for t in random_case(shape, dtype)]
    inputs[:2] = [LAYOUTS[layout](t) for t in inputs[:2]]
    proposals = random_proposals(*((B, P) if each_video else (P,)), T=T).to(device)
    if device == "cuda" or 2 * P < T:
        check_16_bit_products(proposals, inputs, per_bin, backend)
    else:
        compare(lambda x, w, b: proposal_conv(x, proposals, w, b, per_bin), inputs, backend)


def check_16_bit_products(proposals: Tensor, inputs: list[Tensor], per_bin: int, backend: str) -> None:
    """Where the products run in the tensors' dtype: as near to the exact result as the plain formulation is."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    with ops.backend(backend):  # type: ignore[arg-type]
        out = proposal_conv(leaves[0], proposals, leaves[1], leaves[2], per_bin)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    with ops.backend("reference"):
        expected = torch.ops.vpgfast.proposal_conv(wide[0], proposals, wide[1], wide[2], per_bin)
    incoming = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(1)).to(out.device) / 8
    ours = [out, *torch.autograd.grad(out, leaves, incoming.to(out))]
    theirs = [expected, *torch.autograd.grad(expected, wide, incoming.double())]
    for a, b in zip(ours, theirs, strict=True):
        scale = float(b.detach().abs().max()) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=16 * torch.finfo(out.dtype).eps * max(scale, 1e-6))


# B, C, D, T, P, N, samples per bin; each takes another way through the CUDA kernels
CUDA_SHAPES = [
    (1, 3, 5, 6, 4, 2, 1),
    (1, 2, 3, 1, 1, 4, 1),  # one clip, one proposal
    (1, 2, 40, 1600, 900, 2, 1),  # rows too long to hold eight channels of
    (1, 2, 9, 15000, 7600, 2, 1),  # too long to hold at all
    (2, 2, 33, 700, 300, 3, 2),
    (1, 3, 70, 20, 2500, 13, 4),
    (2, 2, 5, 9, 300, 70, 1),  # more samples than a tile of the weight holds
    (1, 2, 70, 17, 60, 264, 1),  # and enough of them for two channels a lane backwards
    (1, 1, 40, 8, 50_000, 1, 1),  # enough proposals for 16 channels a thread
    (1, 1, 33, 8, 70_000, 1, 2),  # for 32
]


@implementations()
@pytest.mark.parametrize("shape", CUDA_SHAPES, ids=str)
@pytest.mark.parametrize("each_video", [False, True], ids=["shared", "each_video"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_long_and_wide(device: str, backend: str, dtype: torch.dtype, shape: tuple[int, ...], each_video: bool) -> None:
    """Calls the op itself, so that few proposals take no other way."""
    B, _, _, T, P, _, per_bin = shape
    inputs = [t.to(device) for t in random_case(shape, dtype)]
    proposals = random_proposals(*((B, P) if each_video else (P,)), T=T).to(device)
    compare(
        lambda x, w, b: torch.ops.vpgfast.proposal_conv(x, proposals, w, b, per_bin),
        inputs,
        backend,
        of_scale=1e-5 if dtype == torch.float32 else 0.0,
    )


@implementations()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_16_bit_results_are_rounded_once(device: str, backend: str, dtype: torch.dtype) -> None:
    """No value lies further from the exact one than rounding it puts it, but for the rounding of float32 sums."""
    shape = (2, 64, 48, 33, 60, 4, 2)
    inputs = [t.to(device) for t in random_case(shape, dtype)]
    proposals = random_proposals(60, T=33).to(device)
    leaves = [t.clone().requires_grad_() for t in inputs]
    wide = [t.double().requires_grad_() for t in inputs]
    with ops.backend(backend):  # type: ignore[arg-type]
        out = proposal_conv(leaves[0], proposals, leaves[1], leaves[2], 2)
    with ops.backend("reference"):
        exact = proposal_conv(wide[0], proposals, wide[1], wide[2], 2)
    incoming = (torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(1)) / 8).to(out)
    ours = [out, *torch.autograd.grad(out, leaves[:2], incoming)]
    theirs = [exact, *torch.autograd.grad(exact, wide[:2], incoming.double())]
    for a, b in zip(ours, theirs, strict=True):
        scale = float(b.detach().abs().max())
        # Half a unit in the last place, as a share of the value, is at most half of epsilon.
        allowed = 0.5 * torch.finfo(dtype).eps * b.abs() + 1e-5 * scale
        assert int(((a.double() - b).abs() > allowed).sum()) == 0


@pytest.mark.parametrize("each_video", [False, True], ids=["shared", "each_video"])
def test_cut_into_videos_and_channels(each_video: bool) -> None:
    """Matrix products too large to hold at once: 24 videos of 4 MiB, then one video of 48 MiB."""
    for shape in ((24, 3, 64, 4096, 4200, 4, 1), (2, 3, 200, 16000, 8100, 4, 1)):
        B, _, _, T, P, _, _ = shape
        x, weight, bias = (t.requires_grad_() for t in random_case(shape, torch.float32))
        proposals = random_proposals(*((B, P) if each_video else (P,)), T=T)
        out = proposal_conv(x, proposals, weight, bias)
        samples = sample_proposals(x, proposals, 4)
        expected = torch.einsum("dcn,bcnp->bdp", weight, samples) + bias[:, None]
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        incoming = torch.randint(-2, 3, out.shape).to(out)
        ours = torch.autograd.grad(out, (x, weight, bias), incoming)
        for a, b in zip(ours, torch.autograd.grad(expected, (x, weight, bias), incoming), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


def test_only_the_gradients_that_are_asked_for() -> None:
    inputs = random_case((2, 3, 5, 8, 0, 2, 1), torch.float32)
    proposals = random_proposals(9, T=8)
    leaves = [t.clone().requires_grad_() for t in inputs]
    every = torch.autograd.grad(proposal_conv(leaves[0], proposals, *leaves[1:]).sum(), leaves)
    for k in range(3):
        mixed = [t.clone().requires_grad_(j == k) for j, t in enumerate(inputs)]
        (grad,) = torch.autograd.grad(proposal_conv(mixed[0], proposals, *mixed[1:]).sum(), mixed[k])
        assert torch.equal(grad, every[k])


@implementations()
def test_gradcheck(device: str, backend: str) -> None:
    inputs = [t.to(device).requires_grad_() for t in random_case((2, 3, 4, 6, 0, 3, 2), torch.float64)]
    proposals = random_proposals(2, 5, T=6).to(device)
    with ops.backend(backend):
        assert torch.autograd.gradcheck(lambda x, w, b: proposal_conv(x, proposals, w, b, 2), inputs)


@implementations()
def test_deterministic_and_fully_written(device: str, backend: str) -> None:
    proposals = random_proposals(500, T=37).to(device)
    inputs = [t.to(device) for t in random_case((3, 20, 150, 37, 0, 3, 2), torch.float32)]
    with ops.backend(backend):
        check_deterministic(lambda x, w, b: proposal_conv(x, proposals, w, b, 2), *inputs)


def test_registration() -> None:
    x, weight, bias = random_case((2, 3, 4, 5, 0, 2, 1), torch.float32)
    proposals = random_proposals(6, T=5)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    samples = [(x, proposals, weight, None, 1), (leaves[0], proposals, *leaves[1:], 2)]
    check_registration("proposal_conv", samples)
    grad = torch.randn(2, 4, 6)
    check_registration(
        "proposal_conv_backward", [(grad, x, proposals, weight, 1, *by) for by in ((True, True), (True, False))]
    )


def test_compiles_without_graph_break() -> None:
    for P in (6, 1):
        proposals = random_proposals(P, T=5)
        check_compiles(
            lambda x, w, b, p=proposals: proposal_conv(x, p, w, b), *random_case((2, 3, 4, 5, 0, 2, 1), torch.float32)
        )


@pytest.mark.parametrize("P", [30, 3], ids=["clips_first", "samples_first"])
def test_autocast_runs_in_its_dtype_with_exact_positions(P: int) -> None:
    x, weight, bias = random_case((2, 3, 4, 300, 0, 2, 1), torch.float32)
    P *= 10
    proposals = random_proposals(P, T=300).float()
    proposals = torch.cat([proposals, torch.tensor([[257.25, 259.75]])])  # 16 bits would round these
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        out = proposal_conv(x, proposals, weight, bias)
        out.float().sum().backward()  # inside the region: products of the backward are not cast either
    assert out.dtype == torch.bfloat16
    assert all(leaf.grad is not None and leaf.grad.dtype == torch.float32 for leaf in leaves)
    rounded = [t.detach().bfloat16().float() for t in leaves]
    exact = proposal_conv(rounded[0], proposals, *rounded[1:])
    torch.testing.assert_close(out.float(), exact, rtol=2e-2, atol=2e-2)


def test_autocast_compiles() -> None:
    proposals = random_proposals(6, T=5)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return proposal_conv(x, proposals, weight)

    x, weight, _ = random_case((2, 3, 4, 5, 0, 2, 1), torch.float32)
    assert function(x, weight).dtype == torch.bfloat16
    check_compiles(function, x, weight)


def test_autocast_leaves_float64_alone() -> None:
    x, weight, bias = random_case((2, 3, 4, 5, 0, 2, 1), torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert proposal_conv(x, random_proposals(6, T=5), weight, bias).dtype == torch.float64


def test_second_derivative_is_refused() -> None:
    x, weight, _ = random_case((1, 1, 1, 4, 0, 2, 1), torch.float32)
    out = proposal_conv(x.requires_grad_(), random_proposals(6, T=4), weight)
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="proposal_conv has no second derivative"):
        grad.sum().backward()


def test_a_batch_of_bad_values_stays_where_it_is() -> None:
    """An infinite gradient, or feature, spoils its own channel or clip and none that is only padding beside it."""
    x, weight, bias = (t.requires_grad_() for t in random_case((2, 3, 20, 6, 0, 2, 1), torch.float32))
    proposals = random_proposals(80, T=6)
    incoming = torch.zeros(2, 20, 80)
    incoming[0, 3] = math.inf
    proposal_conv(x, proposals, weight, bias).backward(incoming)
    assert weight.grad is not None
    assert x.grad is not None
    assert weight.grad[[0, 1, 2, *range(4, 20)]].isfinite().all()
    assert x.grad[1].isfinite().all()


def a_long_list() -> Iterator[None]:
    T, P, C, D, N = 100_000, 500_000, 16, 16, 4
    start = torch.rand(P) * T
    proposals = torch.stack([start, start + torch.rand(P) * 100], 1)
    x, weight = torch.randn(1, C, T, requires_grad=True), torch.randn(D, C, N, requires_grad=True)
    small = proposal_conv(x[:, :, :9], proposals[:9] / T, weight)  # whatever is loaded and started once
    small.backward(torch.ones_like(small))
    x.grad = weight.grad = None
    grad = torch.ones(1, D, P)
    yield
    out = proposal_conv(x, proposals, weight)
    yield
    out.backward(grad)
    yield
    point = 123_456
    a, b = proposals[point].tolist()
    positions = [a + (b - a) / 3 * n for n in range(4)]
    by_hand = sum(
        ((1 - t % 1) * x[0, :, int(t)] + (t % 1) * (x[0, :, int(t) + 1] if int(t) + 1 < T else 0)) @ weight[:, :, n].T
        for n, t in enumerate(positions)
    )
    torch.testing.assert_close(out[0, :, point], by_hand, rtol=1e-3, atol=1e-3)


@linux_only
def test_memory_grows_with_inputs_and_outputs_alone() -> None:
    """100,000 clips and 500,000 proposals; a dense sample mask would take 800 GB."""
    forward, both = (stage.peak for stage in stages(a_long_list))
    mib = 4 / 2**20
    inputs, outputs = (16 * 100_000 + 2 * 500_000) * mib, 16 * 500_000 * mib
    assert outputs < forward < 3 * (inputs + outputs), f"forward took {forward} MiB for {inputs} in, {outputs} out"
    # x, its gradient, proposals; the output and its gradient
    total = (2 * 16 * 100_000 + 2 * 500_000 + 2 * 16 * 500_000) * mib
    assert both < 3 * total, f"forward and backward took {both} MiB for {total} MiB of inputs, outputs and gradients"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"x has shape \[2, 3\]; it must be \[B, C, T\]"),
        ({"weight": torch.zeros(4, 2, 2)}, r"weight has shape \[4, 2, 2\]; it must be \[D, 3, N\]"),
        ({"weight": torch.zeros(4, 3, 0)}, "num_samples is 0; it must be 1 or more"),
        ({"weight": torch.zeros(4, 3, 2).double()}, "weight has dtype torch.float64; it must be torch.float32"),
        ({"bias": torch.zeros(3)}, r"bias has shape \[3\]; it must be \[4\]"),
        ({"bias": torch.zeros(4).half()}, "bias has dtype torch.float16; it must be torch.float32"),
        ({"proposals": torch.zeros(5)}, r"proposals has shape \[5\]; it must be \[2, P, 2\]"),
        ({"proposals": torch.zeros(5, 2).requires_grad_()}, r"pass proposals.detach\(\)"),
        ({"samples_per_bin": 0}, "samples_per_bin is 0; it must be 1 or more"),
    ],
)
def test_wrong_arguments(change: dict[str, object], message: str) -> None:
    arguments = {
        "x": torch.zeros(2, 3, 6),
        "proposals": torch.zeros(5, 2),
        "weight": torch.zeros(4, 3, 2),
        "bias": torch.zeros(4),
    }
    proposal_conv(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        proposal_conv(**(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("bad", [(2.0, 1.0), (0.0, math.nan), (-math.inf, 1.0)], ids=str)
def test_wrong_values(backend: str, bad: tuple[float, float]) -> None:
    proposals = torch.tensor([[0.0, 1.0], bad, [0.0, 1.0]])
    with ops.backend(backend), pytest.raises(RuntimeError, match=r"proposal 1 is \(.*\); it must be two finite"):
        proposal_conv(torch.zeros(1, 1, 3), proposals, torch.zeros(1, 1, 2))


@pytest.mark.parametrize("proposals", [30, 3])  # few: the samples come first
def test_lengths_cut_each_video(proposals: int) -> None:
    """As if each video were a tensor of its own length, whatever stands behind; gradients too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 16, generator=generator, dtype=torch.float64)
    weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 4, 3), (5,)))
    places = random_proposals(proposals, T=16, seed=1)
    lengths = torch.tensor([16, 9, 0])
    junk = x.clone()
    for b, length in enumerate(lengths.tolist()):
        junk[b, :, length:] = torch.nan
    junk.requires_grad_()
    out = proposal_conv(junk, places, weight, bias, lengths=lengths)
    (gradient,) = torch.autograd.grad(out.sum(), junk)
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(out[b : b + 1], proposal_conv(x[b : b + 1, :, :length], places, weight, bias))
        assert not gradient[b, :, length:].any()


@pytest.mark.parametrize(
    ("lengths", "message"),
    [(torch.tensor([1.0, 2.0]), "lengths has dtype"), (torch.tensor([1, 2, 3]), "lengths has shape")],
)
def test_wrong_lengths(lengths: Tensor, message: str) -> None:
    x, weight = torch.zeros(2, 3, 8), torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=message):
        proposal_conv(x, torch.tensor([[0.0, 3.0]]), weight, lengths=lengths)
