"""Muon: momentum, orthogonalised, for the filters of convolutions.

After Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
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
        self.orthogonalize = Orthogonalize()
        """Most of a step's launches, for the runtime to compile."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            updates = self._orthogonal(self._nesterov(parameters, group["momentum"]))
            # As few launches as torch makes of it: on a GPU a step takes as long as they do.
            norms = torch._foreach_norm(parameters)
            torch._foreach_div_(norms, [len(parameter) ** 0.5 for parameter in parameters])
            torch._foreach_div_(parameters, norms)
            torch._foreach_mul_(updates, group["lr"])  # a number, or a tensor on the device
            torch._foreach_sub_(parameters, updates)

    def _orthogonal(self, updates: Sequence[Tensor]) -> list[Tensor]:
        """Orthogonal filters for filters; those of equal shape are dealt with together."""
        by_shape: dict[torch.Size, list[int]] = {}
        for number, update in enumerate(updates):
            by_shape.setdefault(update.shape, []).append(number)
        stacks = [
            torch.stack([updates[number].reshape(shape[0], -1) for number in numbers])
            for shape, numbers in by_shape.items()
        ]
        if self.shared:
            stacks = shared_out(self.orthogonalize, stacks)
        else:
            stacks = self.orthogonalize(stacks)
        found = list(updates)
        for (shape, numbers), matrices in zip(by_shape.items(), stacks, strict=True):
            for number, matrix in zip(numbers, matrices, strict=True):
                found[number] = matrix.view(shape)
        return found

    def _nesterov(self, parameters: Sequence[Parameter], momentum: float) -> list[Tensor]:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, gradients)
        return list(torch._foreach_add(gradients, momenta, alpha=momentum))


class Orthogonalize(nn.Module):
    """`orthogonalize` of several stacks of matrices, as one thing to compile."""

    def forward(self, stacks: Sequence[Tensor]) -> list[Tensor]:
        """Each float32 (n, rows, columns), to the same shapes."""
        return [orthogonalize(matrices) for matrices in stacks]


def shared_out(compute: Orthogonalize, stacks: Sequence[Tensor]) -> list[Tensor]:
    """Orthogonal matrices for stacks of them, dealt out to the ranks.

    All ranks hold the same gradients, so each would otherwise do the work of all.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks == 1:
        return compute(stacks)  # type: ignore[no-any-return]
    shares = [equal_slices(len(stack), ranks) for stack in stacks]
    rank = dist.get_rank()
    own = compute([stack[share[rank]] for stack, share in zip(stacks, shares, strict=True)])
    return [gathered(part, share) for part, share in zip(own, shares, strict=True)]


def equal_slices(length: int, ranks: int) -> list[slice]:
    """A slice for each rank, together all; the last may overlap, so that all are of one size."""
    size = -(-length // ranks)
    starts = (min(rank * size, length - size) for rank in range(ranks))
    return [slice(start, start + size) for start in starts]


def gathered(own: Tensor, slices: Sequence[slice]) -> Tensor:
    """The whole stack, of which each rank has its slice: bfloat16 numbers, kept as float32."""
    length = slices[-1].stop
    if len(own) == length:  # a single matrix
        return own
    message = own.bfloat16().contiguous()  # NCCL takes nothing that is not contiguous
    parts = [torch.empty_like(message) for _ in slices]
    dist.all_gather(parts, message)
    whole = own.new_empty(length, *own.shape[1:])
    for place, part in zip(slices, parts, strict=True):
        whole[place] = part
    return whole


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
