"""Optimisers that torch lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class BertAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay and without bias correction, as BERT's first code (and SeqPAN's) has it.

    ``p -= lr * (m / (sqrt(v) + eps) + weight_decay * p)`` with the running means m of the gradient and v of its square,
    which start at 0: the first steps are up to 3 times as large as with the correction.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: of m and v.
        eps: see above.
        weight_decay: see above.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; ``closure`` is called first, with gradients, as by all of torch's optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta_1, beta_2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                m = state["m"].lerp_(parameter.grad, 1 - beta_1)
                v = state["v"].mul_(beta_2).addcmul_(parameter.grad, parameter.grad, value=1 - beta_2)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-group["lr"])
        return loss
