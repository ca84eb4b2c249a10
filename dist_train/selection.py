"""Training on the hardest samples only: a small proxy network looks at all of them first.

After airbench96 (Keller Jordan, 2024), whose proxy goes through the whole run before the network
does; here both go side by side, so that a run can stop and go on anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dist_train.config import OptimConfig
from dist_train.data.batches import Batch
from dist_train.optim.update import load, set_learning_rates
from dist_train.runtime import Runtime
from dist_train.step import Step


@dataclass(frozen=True)
class Selector:
    """Cuts each batch down to the samples with the highest loss of the proxy.

    They are chosen within groups of consecutive samples, and ranks hold whole groups: which
    samples are trained on does not depend on the world size.
    """

    step: Step
    """Of the proxy network, giving a loss for each sample."""
    optimizers: Sequence[torch.optim.Optimizer]
    settings: OptimConfig
    runtime: Runtime
    group: int
    """Samples of which a group consists."""
    kept: int
    """Samples of each group that are trained on."""
    every: int
    """Steps after which the proxy learns once."""

    def begin_step(self, step: int, total_steps: int) -> bool:
        """Sets the proxy's learning rates; returns whether it learns after so many steps."""
        set_learning_rates(self.optimizers, self.settings, step, total_steps)
        return step % self.every == 0

    def choose(self, batch: Batch, size: int, *, learns: bool) -> Batch:
        """The part of a batch that is worth learning from.

        Args:
            size: side in pixels of what the network sees.
            learns: whether the proxy does, too.
        """
        with torch.set_grad_enabled(learns):
            losses, _ = self.step(batch.images, batch.labels, batch.draws, size)
        if learns:
            self._learn(losses.mean() * batch.share)
        kept = hardest(losses.detach(), self.group, self.kept)
        return replace(
            batch,
            images=batch.images[kept],
            labels=batch.labels[kept],
            draws=batch.draws[kept],
            global_size=self.chosen_of(batch.global_size),
        )

    def chosen_of(self, samples: int) -> int:
        """How many of so many samples are chosen."""
        return samples // self.group * self.kept

    def _learn(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in self.step.model.parameters()]
        self.runtime.average(gradient for gradient in gradients if gradient is not None)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The proxy and its optimizers."""
        return {
            "model": self.step.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` returned."""
        self.step.model.load_state_dict(state["model"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            load(optimizer, values)


def hardest(losses: Tensor, group: int, kept: int) -> Tensor:
    """The places of the highest losses of each group, in rising order: int64 (n // group * kept,).

    Args:
        losses: float (n,), n a multiple of `group`.
        group: consecutive samples that are compared.
        kept: samples chosen from each.
    """
    by_group = losses.view(-1, group)
    places = by_group.topk(kept, dim=1).indices.sort(1).values
    first = torch.arange(len(by_group), device=losses.device)[:, None] * group
    return (first + places).flatten()
