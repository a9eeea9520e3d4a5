"""An image encoder on clips: every frame by itself, tokens of all frames side by side.

Axes: B clip, C channel, T frame, H row, W column, N token of a frame, P prefix token, E width.
"""

from typing import cast

import torch
from torch import nn

from vitreous.core.input_spec import ClipSpec, ImageSpec
from vitreous.encoders.encoder import Backbone, Size3

_FRAMES = 8  # of a clip where nothing else is said: no image encoder states a number


class FrameByFrame(nn.Module):
    """A backbone of images, given the frames of a clip as so many images.

    The grid of a clip is (T, h, w); pooling over its tokens is pooling over time. Prefix tokens, such as the class
    token, are the mean of those of all frames.

    Args:
        image: takes (B, C, 1, H, W).
    """

    def __init__(self, image: nn.Module) -> None:
        super().__init__()
        self.image = image
        self.width = self._backbone.width
        self.num_prefix_tokens = self._backbone.num_prefix_tokens

    @property
    def _backbone(self) -> Backbone:
        return cast(Backbone, self.image)

    @property
    def num_blocks(self) -> int:
        """Blocks of the image encoder."""
        return self._backbone.num_blocks

    def truncate(self, layer: int) -> None:
        """As the image encoder."""
        self._backbone.truncate(layer)

    def init_weights(self, generator: torch.Generator) -> None:
        """As the image encoder."""
        self._backbone.init_weights(generator)

    def set_precision(self, dtype: torch.dtype) -> None:
        """As the image encoder."""
        self._backbone.set_precision(dtype)

    def grid_of(self, size: Size3) -> Size3:
        """Frames, and the tokens of one along rows and columns."""
        _, rows, columns = self._backbone.grid_of((1, *size[1:]))
        return size[0], rows, columns

    def embed(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """(B, T, …): what enters the first block, of every frame."""
        frames = x_BCTHW.transpose(1, 2).flatten(0, 1)[:, :, None]
        return self._backbone.embed(frames).unflatten(0, (len(x_BCTHW), -1))  # type: ignore[no-untyped-call,no-any-return]

    def run_blocks(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Blocks from `start` to before `stop`, of every frame."""
        frames = self._backbone.run_blocks(hidden.flatten(0, 1), start, stop)
        return frames.unflatten(0, hidden.shape[:2])  # type: ignore[no-untyped-call,no-any-return]

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Prefix tokens, the mean over frames, then the tokens of all frames: (B, P + T·N, E)."""
        frames = self._backbone.finish(hidden.flatten(0, 1))
        tokens_BTNE = frames.unflatten(0, hidden.shape[:2])  # type: ignore[no-untyped-call]
        prefix_BPE = tokens_BTNE[:, :, : self.num_prefix_tokens].mean(1)
        return torch.cat([prefix_BPE, tokens_BTNE[:, :, self.num_prefix_tokens :].flatten(1, 2)], dim=1)

    def depth_of(self, name: str) -> int:
        """As the image encoder."""
        return self._backbone.depth_of(name.removeprefix("image."))

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.finish(self.run_blocks(self.embed(x_BCTHW), 0, self.num_blocks))


def clip_spec_of(images: ImageSpec) -> ClipSpec:
    """What an image encoder expects of a clip: eight neighbouring frames, each as it takes an image."""
    fields = images.model_dump(exclude={"fundus"})
    return ClipSpec(**fields, frames=_FRAMES, step=1)
