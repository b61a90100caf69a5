"""Muon: an optimizer that makes every direction of a weight matrix move equally far (Jordan and others, 2024).

Rare facts live in weak directions; a small model learns its tables in well under half the steps that AdamW needs.
"""
import torch

MOMENTUM = 0.95
ROUNDS = 5
A, B, C = 3.4445, -4.7750, 2.0315  # the published coefficients of the fast iteration


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly the closest matrix whose singular values are all one, by Newton-Schulz iteration in bfloat16."""
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(ROUNDS):
        square = x @ x.T
        x = A * x + (B * square + C * square @ square) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """For weight matrices only; embeddings and vectors want another optimizer.

    Every step is a little noise in every direction; without decay it piles up until attention cannot learn any more.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, weight_decay: float = 0.2) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Moves every matrix by its gradient's momentum, made orthogonal."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                update = orthogonal(weight.grad.lerp(momentum, MOMENTUM))
                scale = max(1, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)
