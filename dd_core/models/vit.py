"""A small vision transformer of width k per head (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words").

Patches, a linear embedding of k times ``heads`` numbers, a class token, learned positions. Then ``depth`` blocks, each
LayerNorm, attention, LayerNorm, two linear layers with GELU and four times the width between (pre-norm). LayerNorm and
a linear layer of the class token. No dropout. Attention is written as plain products, which have second derivatives.

Inside, the networks of a stack are the leading dimension: (T, B, tokens, features); of a plain network T is absent.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from dd_core.models.stacking import linear
from dd_core.study.architectures import Shape


class LayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm of the last dimension for T networks."""

    def __init__(self, size: int, trials: int | None):
        """``size`` counts the features of one network."""
        super().__init__(size)
        self.trials = trials
        if trials is not None:
            self.weight = nn.Parameter(torch.ones(trials * size))
            self.bias = nn.Parameter(torch.zeros(trials * size))

    def forward(self, input: Tensor) -> Tensor:
        """(T, B, tokens, size), or (B, tokens, size) of a plain network."""
        if self.trials is None:
            return super().forward(input)
        shape = (self.trials, 1, 1, -1)
        return layer_norm(input, list(self.normalized_shape), eps=self.eps) * self.weight.view(shape) + self.bias.view(
            shape
        )


class Block(nn.Module):
    """Attention and two linear layers, each added to what comes in."""

    def __init__(self, size: int, heads: int, trials: int | None):
        """``size`` counts the features of one network."""
        super().__init__()
        self.heads = heads
        self.norm1 = LayerNorm(size, trials)
        self.queries_keys_values = linear(size, 3 * size, trials)
        self.projection = linear(size, size, trials)
        self.norm2 = LayerNorm(size, trials)
        self.wide = linear(size, 4 * size, trials)
        self.narrow = linear(4 * size, size, trials)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        x = x + self.projection(self._attend(self.queries_keys_values(self.norm1(x))))
        return x + self.narrow(gelu(self.wide(self.norm2(x))))

    def _attend(self, x: Tensor) -> Tensor:
        """(..., tokens, 3 * size) to (..., tokens, size)."""
        parts = x.unflatten(-1, (3, self.heads, -1)).movedim(-4, -2)  # (..., 3, heads, tokens, features of a head)
        queries, keys, values = (parts.select(-4, index) for index in range(3))  # torch.fx cannot unpack
        scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
        return (scores.softmax(-1) @ values).transpose(-3, -2).flatten(-2)


class VisionTransformer(nn.Module):
    """See the module."""

    def __init__(self, k: int, shape: Shape, num_classes: int, trials: int | None, patch: int, depth: int, heads: int):
        """``trials=None`` makes a plain network with logits (B, C), a number a stacked one with (B, T, C)."""
        super().__init__()
        self.trials, self.patch = trials, patch
        height, width, channels = shape
        size, copies = k * heads, trials or 1
        tokens = (height // patch) * (width // patch) + 1
        self.embedding = linear(channels * patch * patch, size, trials)
        self.class_token = nn.Parameter(torch.zeros(1, size).repeat(copies, 1))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, size), std=0.02).repeat(copies, 1))
        self.blocks = nn.Sequential(*(Block(size, heads, trials) for _ in range(depth)))
        self.norm = LayerNorm(size, trials)
        self.linear = linear(size, num_classes, trials)

    def forward(self, images: Tensor) -> Tensor:
        """(B, T*channels, H, W) to logits."""
        side = self.patch
        x = images.unflatten(2, (-1, side)).unflatten(4, (-1, side)).permute(0, 2, 4, 1, 3, 5)  # (B, h, w, TC, p, p)
        x = x.flatten(1, 2)
        if self.trials is None:
            x = self.embedding(x.flatten(2))
            token = self.class_token.expand(x.shape[0], 1, -1)
            x = torch.cat([token, x], 1) + self.positions
            return self.linear(self.norm(self.blocks(x))[:, 0])
        x = self.embedding(x.unflatten(2, (self.trials, -1)).movedim(2, 0).flatten(3))
        token = self.class_token[:, None, None].expand(-1, x.shape[1], 1, -1)
        x = torch.cat([token, x], 2) + self.positions.unflatten(0, (self.trials, 1, -1))
        return self.linear(self.norm(self.blocks(x))[:, :, 0]).transpose(0, 1)


def vit(k: int, shape: Shape, num_classes: int, trials: int | None, patch: int, depth: int, heads: int) -> nn.Module:
    """The builder of ``vit``."""
    return VisionTransformer(k, shape, num_classes, trials, patch, depth, heads)
