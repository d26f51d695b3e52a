"""Muon: AdamW, but for the matrices inside a network, whose steps are made orthogonal.

Follows Jordan et al. (https://kellerjordan.github.io/posts/muon) and, for steps of AdamW's size, Liu et al. (arXiv
2502.16982). Matrices of one shape are made orthogonal together: a small model has dozens of them, each of which alone
would leave a GPU waiting for its next kernel.

Dimensions in names: N matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError

# Of an odd polynomial that brings singular values from (0, 1] to about 1 in five rounds, if not exactly there.
_A, _B, _C, _ROUNDS = 3.4445, -4.7750, 2.0315, 5
# The root mean square of what AdamW steps by, so that both learn at one rate.
_SIZE = 0.2


class Muon(torch.optim.AdamW):
    """AdamW with the steps of some groups made orthogonal: those with ``orthogonal`` true.

    Args:
        groups: Groups of parameters, each with the key ``orthogonal``; of a kernel of a convolution, what lies behind
            the first dimension counts as one.
        lr: The learning rate, for both.
        betas: Of AdamW's moments.
        momentum: Of the gradients of what is made orthogonal (Nesterov's).
        **options: Further options of AdamW.

    Raises:
        UserError: If such a parameter is no matrix.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
        **options: Any,
    ) -> None:
        for parameter in (parameter for group in groups if group["orthogonal"] for parameter in group["params"]):
            if parameter.dim() < 2:
                raise UserError(f"muon got a parameter of shape {tuple(parameter.shape)}", "give it matrices")
        super().__init__(list(groups), lr=lr, betas=betas, **options)
        self.momentum = momentum

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; return what ``closure`` does, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = self.param_groups
        self.param_groups = [group for group in every if not group["orthogonal"]]
        try:
            super().step()
        finally:
            self.param_groups = every
        for group in every:
            if group["orthogonal"]:
                self._step_orthogonally(group)
        return loss

    @torch.no_grad()
    def _step_orthogonally(self, group: dict[str, Any]) -> None:
        learning = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not learning:
            return
        gradients: list[Tensor] = [parameter.grad for parameter in learning]
        for parameter in learning:
            if not self.state[parameter]:  # AdamW counts steps, and looks for their number in what it loads
                self.state[parameter] = {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
        momenta = [self.state[parameter]["momentum"] for parameter in learning]
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        steps = torch._foreach_lerp(gradients, momenta, self.momentum)
        torch._foreach_mul_(learning, 1 - group["lr"] * group["weight_decay"])
        alike: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for i, parameter in enumerate(learning):
            alike.setdefault((parameter.shape, parameter.dtype), []).append(i)
        for (shape, dtype), chosen in alike.items():
            turned_NRC = orthogonal(torch.stack([steps[i].flatten(1) for i in chosen]))
            size = _SIZE * max(turned_NRC.shape[1:]) ** 0.5
            updates = turned_NRC.to(dtype, memory_format=torch.contiguous_format).unflatten(2, shape[1:]).unbind()
            torch._foreach_add_([learning[i] for i in chosen], list(updates), alpha=-group["lr"] * size)


def orthogonal(x_NRC: Tensor) -> Tensor:
    """Return matrices with the singular vectors of the given ones and singular values of about 1.

    On a GPU they are multiplied in bfloat16, which is all the accuracy that a step needs.

    Args:
        x_NRC: The matrices.
    """
    tall = x_NRC.shape[1] > x_NRC.shape[2]
    x = x_NRC.to(torch.bfloat16) if x_NRC.is_cuda else x_NRC
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ROUNDS):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


def hidden_weights(network: nn.Module, head: nn.Module) -> list[nn.Parameter]:
    """Return what Muon is for: the weights of linear layers, and of convolutions that mix channels, but the head's."""
    own = set(head.modules())
    mixing = [
        module
        for module in network.modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1)
    ]
    return [cast(nn.Parameter, module.weight) for module in mixing if module not in own]
