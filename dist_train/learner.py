"""The network with all that moves its weights: one step, and what a checkpoint keeps of it."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import reduce
from itertools import product
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from dist_train import build
from dist_train.checkpoint import TrainState
from dist_train.config import Config
from dist_train.cuda_graphs import Recorder, Recording
from dist_train.data.batches import Batch
from dist_train.data.prepare import Prepared
from dist_train.errors import UserError
from dist_train.evaluate import Evaluation
from dist_train.flops import flops_of_sizes
from dist_train.metrics import Clock, StepResult
from dist_train.models.norm import grouped_norms
from dist_train.optim.averaging import Averaged
from dist_train.optim.losses import LOSSES
from dist_train.optim.schedules import reduce_on_plateau
from dist_train.optim.update import (
    learning_rates,
    load,
    memory,
    not_finite,
    set_learning_rates,
    tensors,
    undone,
    update,
)
from dist_train.runtime import Runtime
from dist_train.step import Step

Around = Callable[[str], AbstractContextManager[None]]
"""What to do around a part of a step: forward, backward, optimizer, or replay for all of it."""


class Learner:
    """Built in the order that is a contract.

    The memory format before the optimizer sees the weights; the weights before ranks take rank 0's;
    DDP before compile, which cuts its graph where DDP's buckets end; the optimizers' state last,
    when their weights are on the device.

    Args:
        sizes: side in pixels of what the network sees, for each step of the run.
        state: a checkpoint to go on from.

    Raises:
        UserError: the settings fit no network, or cannot be carried out here.
    """

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        runtime: Runtime,
        clock: Clock,
        *,
        sizes: Sequence[int],
        state: TrainState | None,
    ) -> None:
        self.config, self.runtime, self.sizes = config, runtime, sizes
        train, manifest = config.train, prepared.manifest
        self.augment = build.augmentation(config.data, manifest).to(runtime.device)
        with clock.phase("initialise"):
            self.model = runtime.place(build.network(config, prepared, self.augment))
            self.selector = build.selector(config, prepared, self.augment, runtime)
        self.flops = flops_of_sizes(config, self.model, manifest.image_shape, sizes)
        if config.model.sync_batch_norm:
            self.model = runtime.synchronize_norms(self.model)
        if state:
            self._restore_weights(state)
        build.pretrained(config.model, self.model, runtime, fresh=state is None)
        self.networks = [self.model]
        """What is trained: the model and, if there is one, the proxy that chooses its samples."""
        if self.selector is not None:
            self.networks.append(self.selector.step.model)
        runtime.share(tensors(self.networks))  # whitening may differ between kinds of processors
        self.norms = [norm for network in self.networks for norm in grouped_norms(network)]
        self.local_sgd = train.local_steps > 1
        """Whether ranks train on their own between two meetings."""
        if self.local_sgd and runtime.precision == "fp16":
            raise UserError(
                f"--train.local_steps {train.local_steps}: with --runtime.precision fp16 ranks "
                "skip steps of their own and cannot be averaged; choose bf16 or fp32"
            )
        self.optimizers = build.optimizers(
            config.optim, self.model, runtime, same_gradients=not self.local_sgd
        )
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        averages = train.ema or train.average_tail
        self.averaged = Averaged(self.model, train.ema) if averages else None
        tail = max(1, round(train.average_tail * len(sizes)))
        self.average_from = len(sizes) - tail if train.average_tail else 0
        self.loss_of = LOSSES[train.loss]
        step = Step(self.model, self.augment, runtime, self.loss_of, train.label_smoothing)
        compression = config.runtime.gradient_compression
        self.objective = step if self.local_sgd else runtime.distribute(step, compression)
        runtime.compile(self.objective)
        self.recorder = Recorder() if runtime.cuda_graphs else None
        if state:
            self._restore(state)

    def learn(
        self, batch: Batch, step: int, around: Around, *, with_gradient_norm: bool = False
    ) -> StepResult:
        """Forward, backward, update.

        Nothing here waits for the device, unless float16 is scaled or a recording has to be made.

        Args:
            step: optimizer steps done.
            around: times the parts of the step.
            with_gradient_norm: whether it is told; a recorded step always tells it.
        """
        size, total_steps = self.sizes[step], len(self.sizes)
        set_learning_rates(self.optimizers, self.config.optim, step, total_steps)
        self._weigh_statistics(batch.share)
        samples, proxy_learns = batch.global_size, False
        if self.selector is not None:
            proxy_learns = self.selector.begin_step(step, total_steps)
            samples = self.selector.chosen_of(samples)
        norm: Tensor | None
        if self.recorder is not None:
            recording = self._recording(self.recorder, batch, size, proxy_learns)
            with around("replay"):
                loss, correct, norm = recording(batch.images, batch.labels, batch.draws)
        else:
            loss, correct, norm = self._compute(
                batch, size, proxy_learns, around, with_gradient_norm
            )
        if (step + 1) % self.config.train.local_steps == 0:
            self.average_ranks()
        if self.averaged is not None and step >= self.average_from:
            self.averaged.update_parameters(self.model)
        return StepResult(loss, correct, norm, batch.share, samples, seen=batch.global_size)

    def _compute(
        self, batch: Batch, size: int, proxy_learns: bool, around: Around, with_norm: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """All of a step that the device does: forward, backward, update.

        Returns:
            Mean loss times share, right answers and, if it is wanted, the gradient's norm.
        """
        if self.selector is not None:
            batch = self.selector.choose(batch, size, learns=proxy_learns)
        parts = batch.parts(self.config.train.accumulate)
        outcomes = []
        for part in parts:
            with self.runtime.summing(self.objective, now=part is parts[-1]):
                with around("forward"):
                    loss, correct = self.objective(part.images, part.labels, part.draws, size)
                    loss = loss * part.share
                with around("backward"):
                    self.scaler.scale(loss).backward()
            outcomes.append((loss.detach(), correct))
        with around("optimizer"):
            norm = update(
                self.optimizers,
                self.scaler,
                self.model,
                self.config.optim.gradient_clip,
                with_norm=with_norm,
            )
        loss, correct = (reduce(add, values) for values in zip(*outcomes, strict=True))
        return loss, correct, norm

    def average_ranks(self, *, averages_too: bool = False) -> None:
        """Gives ranks that train on their own the mean of their weights and momenta.

        Args:
            averages_too: also that of their averages of weights, which nothing trains with: only
                what is judged or kept needs it.
        """
        if self.local_sgd:
            moments = [tensor for tensor in memory(self.optimizers) if tensor.ndim]
            self.runtime.average([*self.model.parameters(), *moments])
            if averages_too and self.averaged is not None:
                self.runtime.average(self.averaged.module.parameters())

    def average_statistics(self) -> None:
        """Makes BatchNorm's statistics those of all ranks together, before an evaluation."""
        self.runtime.average(self.model.buffers())
        if self.averaged is not None:
            self.runtime.average(self.averaged.module.buffers())

    def judged_model(self, step: int) -> nn.Module:
        """What is judged and kept after so many steps: the model, or the average of its weights."""
        if self.averaged is None or step <= self.average_from:
            return self.model
        return self.averaged.module

    def adapt(self, result: Evaluation) -> None:
        """Lowers the learning rate when evaluations no longer get better, if that is asked for."""
        settings = self.config.optim
        if settings.schedule == "plateau":
            loss = self.runtime.on_main(
                lambda: self.loss_of(result.logits, result.labels, 0.0).mean().item()
            )
            groups = [group for each in self.optimizers for group in each.param_groups]
            reduce_on_plateau(groups, loss, decay=settings.decay, patience=settings.patience)

    def learning_rates(self) -> dict[str, float]:
        """Of each group of parameters, by the names of metrics."""
        return learning_rates(self.optimizers)

    def is_finite(self) -> bool:
        """Whether all weights of all ranks, also a proxy's, are finite; waits for the device."""
        bad = not_finite(p for network in self.networks for p in network.parameters())
        return self.runtime.sum(bad).item() == 0

    def warm_up(self, batch: Batch, sizes: Iterable[int]) -> None:
        """Compiles a step for image sizes, and records it where that is asked for.

        Weights, buffers and what optimizers remember stay as they are.

        Raises:
            UserError: it cannot be recorded.
        """
        self._weigh_statistics(batch.share)
        optimizers = [*self.optimizers, *(self.selector.optimizers if self.selector else ())]
        kinds = [False] if self.selector is None else [True, False]  # does its proxy learn?
        before = tensors(self.networks)
        with undone(self.networks, optimizers, self.scaler):
            for size, proxy_learns in product(sizes, kinds):
                with self.recorder.rehearsing() if self.recorder else nullcontext():
                    self._compute(batch, size, proxy_learns, unwatched, with_norm=True)
                if self.recorder is not None:
                    self._recording(self.recorder, batch, size, proxy_learns)
        replaced = any(a is not b for a, b in zip(tensors(self.networks), before, strict=True))
        if replaced and self.recorder is not None:
            raise UserError(
                "--runtime.cuda_graphs true: a step replaces buffers of the network, where a "
                "recorded one has to change them in place (copy_, mul_); or leave it out"
            )
        self.runtime.synchronize()

    def _recording(
        self, recorder: Recorder, batch: Batch, size: int, proxy_learns: bool
    ) -> Recording:
        """Such a step as one CUDA graph."""

        def compute(images: Tensor, labels: Tensor, draws: Tensor) -> Sequence[Tensor]:
            own = replace(batch, images=images, labels=labels, draws=draws)
            loss, correct, norm = self._compute(own, size, proxy_learns, unwatched, with_norm=True)
            assert norm is not None
            return loss, correct, norm

        kind = (len(batch.images), size, proxy_learns)
        return recorder.recording(kind, compute, (batch.images, batch.labels, batch.draws))

    def _weigh_statistics(self, share: float) -> None:
        for norm in self.norms:
            if norm.rank_share != share:  # compiled code looks at every assignment
                norm.rank_share = share

    def state(self) -> dict[str, Any]:
        """Its part of a TrainState; asked by all ranks together."""
        own = {name: buffer.cpu() for name, buffer in self.model.named_buffers()}
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "buffers": list(self.runtime.gather(own)),
            "averaged": self.averaged.state_dict() if self.averaged is not None else {},
            "proxy": self.selector.state_dict() if self.selector is not None else {},
        }

    def load(self, state: TrainState) -> None:
        """Goes back to a checkpoint."""
        self._restore_weights(state)
        self._restore(state)

    def _restore_weights(self, state: TrainState) -> None:
        try:
            self.model.load_state_dict(state.model)
        except RuntimeError as error:
            name = self.config.model.target or self.config.model.name
            raise UserError(
                f"the checkpoint after step {state.step} is not of this {name} "
                f"({str(error).splitlines()[-1].strip()}): bring back the code it was trained "
                "with, or choose another --name"
            ) from error

    def _restore(self, state: TrainState) -> None:
        """Everything but the weights, which come before DDP."""
        if self.recorder is not None:
            self.recorder.forget()  # recordings know where the momenta were
        for optimizer, values in zip(self.optimizers, state.optimizers, strict=True):
            load(optimizer, values)
        if state.scaler:  # there is none from a run that was not float16 until now
            self.scaler.load_state_dict(state.scaler)
        for name, buffer in self.model.named_buffers():
            restore_buffer(buffer, [of_rank[name] for of_rank in state.buffers], self.runtime)
        if self.averaged is not None:
            self.averaged.load_state_dict(state.averaged)
        if self.selector is not None:
            self.selector.load_state_dict(state.proxy)


def unwatched(_: str) -> AbstractContextManager[None]:
    """For a step that nobody times."""
    return nullcontext()


def restore_buffer(buffer: Tensor, of_ranks: Sequence[Tensor], runtime: Runtime) -> None:
    """This rank's own; on another number of ranks the mean of all, as evaluation takes it."""
    if len(of_ranks) == runtime.world_size or not buffer.is_floating_point():
        buffer.copy_(of_ranks[min(runtime.rank, len(of_ranks) - 1)])
    else:
        buffer.copy_(torch.stack(list(of_ranks)).mean(0))
