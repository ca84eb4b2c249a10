"""The whole set on the device: the same batches in the same order, without a reader."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch

from dist_train.data.order import Ids


class ResidentLoader:
    """Batches gathered from one uint8 tensor on the device; each has its own memory."""

    def __init__(
        self,
        images: np.ndarray[Any, np.dtype[np.uint8]],
        *,
        batch_size: int,
        device: torch.device,
    ) -> None:
        """Move `images`, uint8 (N, H, W, C), to the device; the CPU shares their memory."""
        self._shape = images.shape[1:]
        images = np.require(images, requirements=["C", "W"])
        # Rows, not four dimensions: index_select then copies each one as a block.
        self._rows = torch.from_numpy(images.reshape(len(images), -1)).to(device)
        self._batch_size = batch_size

    def epoch(self, ids: Ids) -> Generator[torch.Tensor]:
        """Images of the samples `ids` (N,), in that order: uint8 (batch_size, H, W, C), NHWC.

        The last batch may be shorter. Raises IndexError for ids outside the set.
        """
        samples = len(self._rows)
        if len(ids) and not (ids.min() >= 0 and ids.max() < samples):
            raise IndexError(f"ids must lie in 0..{samples - 1}")
        order = torch.from_numpy(np.array(ids, np.int64))
        if self._rows.is_cuda:
            order = order.pin_memory().to(self._rows.device, non_blocking=True)
        return (
            self._rows.index_select(0, order[start : start + self._batch_size]).view(
                -1, *self._shape
            )
            for start in range(0, len(order), self._batch_size)
        )

    def close(self) -> None:
        """Release the set."""
        self._rows = self._rows.new_empty(0, 0)
