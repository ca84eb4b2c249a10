"""A small vision transformer (Dosovitskiy et al., 2020)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_train.models.inputs import Inputs, Widths


class ViT(nn.Module):
    """Patches as tokens, transformer blocks, the mean of the tokens, a linear head.

    The mean instead of a class token: Beyer et al., "Better plain ViT baselines" (2022).

    Args:
        widths: of a token, a single multiple of 64, which is the width of an attention head.
        depth: number of blocks.
    """

    def __init__(self, inputs: Inputs, widths: Widths, _: Widths, *, depth: int = 6) -> None:
        super().__init__()
        (width,) = widths
        height, image_width, channels = inputs.image_shape
        # Patches have 4 pixels a side, 16 in images of more than 64.
        patch = 4 if max(height, image_width) <= 64 else 16
        tokens = (height // patch) * (image_width // patch)
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, inputs.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


class Block(nn.Module):
    """Self-attention, then two fully connected layers, each beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, width) to the same shape."""
        x = x + self.projection(self.attention(self.qkv(self.norm1(x))))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def attention(self, qkv: Tensor) -> Tensor:
        """(N, tokens, 3 width) to (N, tokens, width)."""
        n, tokens, _ = qkv.shape
        q, k, v = qkv.view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, -1)
