"""The part of a training step that is compiled: augment, model under autocast, loss."""

from torch import Tensor, nn

from dist_train.data.augment import KEY, Augment, resize
from dist_train.models.layers import dropouts
from dist_train.optim.losses import Loss
from dist_train.runtime import Runtime


class Step(nn.Module):
    """Bytes in, loss out. DDP wraps it, so that all of it is one graph.

    Args:
        loss: one of optim.losses.
        label_smoothing: mass spread evenly over the classes (Szegedy et al., 2016).
        reduced: return one mean and one sum, not a value a sample.
    """

    def __init__(
        self,
        model: nn.Module,
        augment: Augment,
        runtime: Runtime,
        loss: Loss,
        label_smoothing: float,
        reduced: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.augment = augment
        self.runtime = runtime
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.reduced = reduced
        self.dropouts = dropouts(model)

    def forward(
        self, images: Tensor, labels: Tensor, draws: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """The mean loss, float32 (), and the number of right answers, int64 ().

        Unless `reduced`: each sample's loss, float32 (n,), and whether it is right, bool (n,).

        Args:
            images: uint8 (n, H, W, C); 2n with mix-up or CutMix.
            labels: int64 (n,), or 2n.
            draws: float32 (n, NUM_DRAWS), or 2n.
            size: side in pixels of what the model sees.
        """
        x = resize(self.augment(images, draws), size)
        for dropout in self.dropouts:
            dropout.keys = draws[: len(x), KEY]
        with self.runtime.autocast():
            logits = self.model(x)
        logits = logits.float()
        own = labels[: len(logits)]
        loss = self.loss(logits, own, self.label_smoothing)
        if self.augment.settings.mixes:
            partner = self.loss(logits, labels[len(logits) :], self.label_smoothing)
            share = self.augment.own_share(draws)
            loss = share * loss + (1 - share) * partner
        right = logits.argmax(1) == own
        return (loss.mean(), right.sum()) if self.reduced else (loss, right)
