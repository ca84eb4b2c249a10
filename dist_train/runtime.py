"""One of the processes that train together: what it says to the others, DDP, torch.compile."""

import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.nn.parallel import DistributedDataParallel

from dist_train.config import RuntimeConfig
from dist_train.errors import UserError
from dist_train.hardware import (
    DTYPES,
    choose_algorithms,
    is_for_cpu,
    keep_freed_memory,
    refuse_recording,
    refuse_sharding,
    resolve_compile,
    resolve_precision,
    set_threads,
)
from dist_train.heartbeat import Heartbeat
from dist_train.process_group import joined

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Runtime:
    """This process among its peers, and how it computes."""

    device: torch.device
    rank: int
    world_size: int
    precision: str
    """fp32, bf16 or fp16: autocast's type; weights stay float32."""
    compile_backend: str | None
    """torch.compile's backend; None: eager."""
    cuda_graphs: bool
    """Whether steps are recorded and replayed."""
    timeout: timedelta
    """How long ranks wait for each other."""
    heartbeat: Heartbeat
    """Notices when one of them is gone."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks for the run."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision around a forward pass."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory format in which convolutions are fastest."""
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def alive(self) -> None:
        """Said after each step and each batch of an evaluation: this rank does not hang."""
        self.heartbeat.alive()

    def host_group(self) -> Any:
        """Processes that talk about host memory, beside the device's; None: there is only one."""
        if self.world_size == 1:
            return None
        return dist.new_group(backend="gloo", timeout=self.timeout)

    def distribute(self, module: nn.Module, compression: str) -> nn.Module:
        """Averages gradients over ranks during backward; weights and buffers become rank 0's.

        Args:
            compression: `bf16` or `fp16` halves what travels; `none`.
        """
        if self.world_size == 1:
            return module
        # Buffers are averaged when they are needed (`average`), not sent at each forward.
        # torch 2.15 renamed the argument.
        renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
        no_sync = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        distributed = DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **no_sync,  # type: ignore[arg-type]
        )
        if compression != "none":
            hook = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}[compression]
            distributed.register_comm_hook(None, hook)
        return distributed

    def summing(self, module: nn.Module, now: bool) -> AbstractContextManager[Any]:
        """Around forward and backward: gradients of all ranks meet `now`, or at a later one."""
        if now or not isinstance(module, DistributedDataParallel):
            return nullcontext()
        return module.no_sync()

    def synchronize_norms(self, model: nn.Module) -> nn.Module:
        """BatchNorm over all ranks' samples of a step.

        Raises:
            UserError: there is no GPU; torch has it for CUDA only.
        """
        if self.device.type != "cuda":
            raise UserError(
                "--model.sync_batch_norm true: torch has it for GPUs only; "
                "--model.batch_norm_group does the same for any world size"
            )
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call,no-any-return]

    def compile(self, module: nn.Module) -> None:
        """Compiles in place, so that state dicts keep their keys; does nothing when eager."""
        if self.compile_backend is not None:
            module.compile(backend=self.compile_backend, dynamic=False)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Gives all ranks the mean of float tensors, in place and in one message."""
        self._together(tensors, lambda message: self.sum(message).div_(self.world_size))

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Gives all ranks rank 0's float tensors, in place and in one message."""
        self._together(tensors, lambda message: dist.broadcast(message, 0))

    def _together(self, tensors: Iterable[Tensor], send: Callable[[Tensor], object]) -> None:
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        if self.world_size == 1 or not floats:
            return
        message = torch.cat([tensor.detach().float().flatten() for tensor in floats])
        send(message)
        parts = torch.split(message, [tensor.numel() for tensor in floats])
        with torch.no_grad():
            for tensor, part in zip(floats, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def on_main(self, function: Callable[[], T]) -> T:
        """What the function returns on rank 0, on every rank; its UserError, too."""
        outcome = [caught(function) if self.is_main else None]
        if self.world_size > 1:
            dist.broadcast_object_list(outcome)
        if isinstance(outcome[0], UserError):
            raise outcome[0]
        return outcome[0]  # type: ignore[return-value]

    def on_each(self, function: Callable[[], T]) -> T:
        """What the function returns on this rank; the first rank's UserError, on every rank.

        For what may fail on one node alone: others would wait for a rank that is gone.
        """
        outcome = caught(function)
        for failure in self.gather(outcome if isinstance(outcome, UserError) else None):
            if failure is not None:
                raise failure
        return outcome  # type: ignore[return-value]

    def agree(self, what: str, value: Any, remedy: str) -> None:
        """Raises UserError, on every rank, where ranks do not have the same value."""
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(f"{what}: {values[0]} on rank 0, {other} on rank {rank}; {remedy}")

    def say(self, line: str) -> None:
        """Prints on rank 0."""
        if self.is_main:
            print(line, flush=True)

    def gather(self, value: Any) -> Sequence[Any]:
        """The values of all ranks, by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world_size > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def mark(self) -> Any:
        """Now, by the clock of the device that computes; does not wait for it."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds_between(self, start: Any, end: Any) -> float:
        """Between two marks that the device has passed: call `synchronize` before."""
        return start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start  # type: ignore[no-any-return]

    def device_name(self) -> str:
        """The GPU's name, or cpu."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return "cpu"

    def peak_memory_bytes(self) -> int:
        """The most device memory held so far; on CPU, the most resident memory."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def caught(function: Callable[[], T]) -> T | UserError:
    """What a function returns, or the UserError that it raises."""
    try:
        return function()
    except UserError as error:
        return error


@contextmanager
def start_runtime(settings: RuntimeConfig) -> Iterator[Runtime]:
    """Joins the process group that accelerate, torchrun or nobody set up, and leaves it again.

    Raises:
        UserError: the device, the precision or the rendezvous cannot be had.
    """
    refuse_sharding()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cpu = is_for_cpu(settings.device, processes=processes)
    precision = resolve_precision(settings.precision, cpu=cpu)
    backend = resolve_compile(settings.compile, cpu=cpu)
    if settings.cuda_graphs:
        refuse_recording(cpu=cpu, precision=precision)
    timeout = timedelta(seconds=settings.timeout_seconds)
    with joined(cpu=cpu, timeout=timeout) as state:
        if backend is not None:
            torch._dynamo.config.recompile_limit = 64  # image sizes x networks x lengths of a batch
        set_threads(settings.threads, processes=processes)
        choose_algorithms(deterministic=settings.deterministic)
        if cpu:
            keep_freed_memory()
        else:
            torch.cuda.reset_peak_memory_stats(state.device)
        store = None
        if state.num_processes > 1:
            # A connection of its own, as another thread will use it.
            store = dist.distributed_c10d._get_default_store().clone()
        runtime = Runtime(
            timeout=timeout,
            heartbeat=Heartbeat(
                store,
                rank=state.process_index,
                world_size=state.num_processes,
                timeout=settings.timeout_seconds,
            ),
            device=state.device,
            rank=state.process_index,
            world_size=state.num_processes,
            precision=precision,
            compile_backend=backend,
            cuda_graphs=settings.cuda_graphs,
        )
        how = f"{precision}, {'eager' if backend is None else 'compiled'}"
        remedy = "set --runtime.precision and --runtime.compile to what all of them can do"
        runtime.agree("processes would compute in different ways", how, remedy)
        yield runtime
