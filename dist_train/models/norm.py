"""Batch normalisation whose statistics need not know how many processes there are."""

import torch
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm over consecutive groups of `group` samples; 0: over the whole local batch.

    With groups, and ranks that hold whole groups, a step computes the same numbers on any world
    size. The running statistics move once a step, towards the mean over the samples, weighted by
    `rank_share` so that their mean over the ranks is what a single process would have.

    Args:
        channels: C of the (N, C, H, W) input.
        group: samples per group.
        momentum: share of the new statistics in the running ones, as in torch.
        scale: learn a scale beside the shift.
    """

    def __init__(
        self,
        channels: int,
        *,
        group: int = 0,
        momentum: float = 0.1,
        eps: float = 1e-5,
        scale: bool = True,
    ) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.weight.requires_grad_(scale)
        self.group = group
        self.rank_share = 1.0
        """This rank's samples of the step, relative to an equal share; set by the loop."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        if not self.training or self.group == 0:
            return super().forward(x)
        if torch.compiler.is_compiling() and len(x) % self.group == 0:
            return self._compiled(x)
        outputs, means, variances = [], [], []
        for part in torch.split(x, self.group):
            output, mean, inverse_std = torch.native_batch_norm(
                part, self.weight, self.bias, None, None, True, 0.0, self.eps
            )
            count = part.numel() // part.shape[1]
            share = len(part) / len(x)  # the last group may be smaller
            outputs.append(output)
            means.append(mean * share)
            variances.append((inverse_std**-2 - self.eps) * (share * count / max(count - 1, 1)))
        self._move(torch.stack(means).sum(0), torch.stack(variances).sum(0))
        return torch.cat(outputs)

    def _compiled(self, x: Tensor) -> Tensor:
        """The same in one piece, of which compilers make fewer kernels than of its parts."""
        samples, channels = x.shape[:2]
        groups = x.view(-1, self.group, *x.shape[1:]).float()
        variance, mean = torch.var_mean(groups, dim=(1, 3, 4), correction=0)
        inverse_std = torch.rsqrt(variance + self.eps)

        def of_samples(values: Tensor) -> Tensor:
            """(groups, C) to (N, C, 1, 1): five dimensions would cost x its memory format."""
            each = values[:, None].expand(-1, self.group, -1)
            return each.reshape(samples, channels, 1, 1)

        scale = of_samples(inverse_std * self.weight)
        output = (x.float() - of_samples(mean)) * scale + self.bias[:, None, None]
        count = groups[0].numel() // channels
        unbiased = variance.detach() * (count / max(count - 1, 1))
        self._move(mean.detach().mean(0), unbiased.mean(0))
        return output.to(x.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics, towards those of this step."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            running.mul_(1 - self.momentum).add_(new, alpha=self.momentum * self.rank_share)


def grouped_norms(model: nn.Module) -> list[BatchNorm]:
    """The layers whose `rank_share` has to be kept up to date."""
    return [m for m in model.modules() if isinstance(m, BatchNorm) and m.group]
