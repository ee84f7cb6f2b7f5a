"""Optimisers that torch lacks."""

from __future__ import annotations

import torch

from vpgfast.config import OptimConfig
from vpgfast.models.layers import Linear
from vpgfast.train.run import make_optimizer


def test_bert_adam_by_the_released_rule() -> None:
    """``apply_gradients`` of SeqPAN's AdamWeightDecayOptimizer, by hand over five steps; biases decay by nothing."""
    torch.manual_seed(0)
    model = Linear(3, 2).double()
    optimizer = make_optimizer(model, OptimConfig(name="bert_adam", lr=0.1, weight_decay=0.01))
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    m = {name: torch.zeros_like(p) for name, p in expected.items()}
    v = {name: torch.zeros_like(p) for name, p in expected.items()}
    for _ in range(5):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            m[name] = 0.9 * m[name] + 0.1 * parameter.grad
            v[name] = 0.999 * v[name] + 0.001 * parameter.grad**2
            update = m[name] / (v[name].sqrt() + 1e-6)
            if name == "weight":
                update = update + 0.01 * expected[name]
            expected[name] = expected[name] - 0.1 * update
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-12)


def test_bert_adam_takes_a_closure_and_skips_what_has_no_gradient() -> None:
    model = torch.nn.Linear(2, 2)
    before = model.bias.detach().clone()
    model.bias.requires_grad_(False)
    optimizer = make_optimizer(model, OptimConfig(name="bert_adam"))

    def closure() -> torch.Tensor:
        loss = model(torch.ones(1, 2)).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) is not None
    assert torch.equal(model.bias, before)
