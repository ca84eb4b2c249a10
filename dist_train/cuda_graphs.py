"""`--runtime.cuda_graphs`: a whole step is recorded once, and launched by one call.

A step of a small network is hundreds of kernels of some microseconds, which a CPU launches more
slowly than a GPU runs them.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from dist_train.errors import UserError

Compute = Callable[..., Sequence[Tensor]]


@cache
def recording_stream() -> torch.cuda.Stream:
    """One for all runs of a process: cuBLAS keeps memory for each stream that it has seen."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class Recorder:
    """Keeps recorded computations, which share their memory: one may run at a time."""

    def __init__(self) -> None:
        self._stream = recording_stream()
        self.forget()

    def forget(self) -> None:
        """Drops all recordings, when tensors that they know are replaced."""
        self._recordings: dict[Hashable, Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Around what runs before it is recorded: autograd wants the same stream for both."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def recording(self, kind: Hashable, compute: Compute, inputs: Sequence[Tensor]) -> "Recording":
        """The one of this kind; if there is none, `compute(*inputs)`, which has run before.

        To record is to note its kernels; none of them runs. What else it reads and writes (weights,
        momenta, learning rates) has to be tensors that stay where they are, and nothing in it may
        wait for the device.

        Raises:
            UserError: it cannot be recorded.
        """
        if kind not in self._recordings:
            self._recordings[kind] = self._record(compute, inputs)
        return self._recordings[kind]

    def _record(self, compute: Compute, inputs: Sequence[Tensor]) -> "Recording":
        own = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may be loading data or writing a checkpoint meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                outputs = compute(*own)
        except RuntimeError as error:
            raise UserError(
                f"--runtime.cuda_graphs true: a step cannot be recorded "
                f"({str(error).splitlines()[0]}); leave it out"
            ) from error
        return Recording(graph, own, outputs)


class Recording:
    """A computation that is launched as one."""

    def __init__(
        self, graph: torch.cuda.CUDAGraph, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        self._graph, self._inputs, self._outputs = graph, inputs, outputs

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """What `compute(*inputs)` returns, for inputs of the recorded shapes."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return [output.clone() for output in self._outputs]  # the next run writes over them
