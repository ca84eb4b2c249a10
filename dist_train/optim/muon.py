"""Muon: momentum, orthogonalised, for the filters of convolutions.

After Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum whose update is replaced by its nearest orthogonal matrix.

    Filters are taken as matrices (out, in * height * width) and kept at norm sqrt(out), as in
    airbench. Those of equal shape are orthogonalised together, shared out over the ranks.

    Args:
        params: filters, (out, in, height, width), or groups of them.
        lr: step size.
        momentum: of the gradient's running sum.
        shared: whether all ranks hold the same gradients, and may share out the work.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, momentum: float, shared: bool = True
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.shared = shared

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            updates = self._nesterov(parameters, group["momentum"])
            by_shape: dict[torch.Size, list[int]] = {}
            for number, parameter in enumerate(parameters):
                by_shape.setdefault(parameter.shape, []).append(number)
            for shape, numbers in by_shape.items():
                stacked = torch.stack([updates[number].reshape(shape[0], -1) for number in numbers])
                matrices = shared_out(stacked) if self.shared else orthogonalize(stacked)
                for number, matrix in zip(numbers, matrices, strict=True):
                    updates[number] = matrix.view(shape)
            # As few launches as torch makes of it: on a GPU a step takes as long as they do.
            norms = torch._foreach_norm(parameters)
            torch._foreach_div_(norms, [len(parameter) ** 0.5 for parameter in parameters])
            torch._foreach_div_(parameters, norms)
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _nesterov(self, parameters: Sequence[Parameter], momentum: float) -> list[Tensor]:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, gradients)
        return list(torch._foreach_add(gradients, momenta, alpha=momentum))


def shared_out(matrices: Tensor) -> Tensor:
    """`orthogonalize`, with the matrices dealt out to the ranks.

    All ranks hold the same gradients, so each would otherwise do the work of all.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks == 1 or len(matrices) == 1:
        return orthogonalize(matrices)
    share = -(-len(matrices) // ranks)
    # The last shares may overlap, so that all are of one size.
    starts = [min(rank * share, len(matrices) - share) for rank in range(ranks)]
    first = starts[dist.get_rank()]
    own = orthogonalize(matrices[first : first + share]).contiguous()  # NCCL takes no other
    parts = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(parts, own)
    result = torch.empty_like(matrices)
    for start, part in zip(starts, parts, strict=True):
        result[start : start + share] = part
    return result


def orthogonalize(matrices: Tensor, steps: int = 3) -> Tensor:
    """Nearly the orthogonal factor of each matrix: float32 (n, rows, columns), same shape.

    A quintic Newton-Schulz iteration in bfloat16, with coefficients that trade exactness for
    speed: singular values end near one (source: the Muon write-up above, which takes five steps;
    airbench takes three, after which the smallest are still well below).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    factor: Tensor = x.mT if tall else x
    return factor.to(matrices.dtype)
