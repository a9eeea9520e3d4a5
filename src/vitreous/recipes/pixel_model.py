"""An encoder with pooling and a head, as one network that trains from any block on.

The features enter the head as the encoder's end gives them: a transformer's end is a norm already, and another one here
would hide from the head what the probe on the same features sees.

Axes: B batch, C class (of logits) or channel (of input), D slice (of input) or width (of features), H row, W column.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vitreous.core.errors import UserError
from vitreous.core.streams import torch_stream
from vitreous.encoders.encoder import Backbone, Encoder
from vitreous.features.pooling import Pooling, pool_tokens
from vitreous.recipes.adapter_settings import AdapterSettings
from vitreous.recipes.segmentation import SegmentationDecoder, SegmentationSettings
from vitreous.recipes.trainable import freeze_modes, trained_depths
from vitreous.recipes.weights_digest import digest_tensors

HeadKind = Literal["linear", "mlp"]
Size3 = tuple[int, int, int]

_OUTPUT_STD = 0.01  # first logits close to zero: the first gradients into the encoder are then small


class PixelModel(nn.Module):
    """Input to logits; stem and first blocks may be frozen, and their outcome then be computed once.

    A part of the encoder is stem, one block or end (see `Backbone`). What is frozen runs without gradients as far as
    the first trained block, and in eval mode even under ``train()``: batch norms keep their statistics and nothing is
    dropped. Chance (dropout, drop path) comes from torch's global generator alone.

    Args:
        encoder: in trainable form.
        coarse_grid: cells of `grid` pooling.
        head: a linear layer, or one hidden layer of `head_width` with GELU; dropout stands before the last layer.
        seed: of the head's first weights.
        segmentation: also a decoder from tokens to a class map, trained beside the head.
        gradient_checkpointing: keep only what enters each trained block and compute the rest anew on the way back:
            the same gradients with less memory, for about a third more time.

    Raises:
        UserError: the encoder cannot be pooled like that.
        ValueError: the encoder was loaded for inference, where batch norms may have become part of convolutions.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        pooling: Pooling,
        coarse_grid: Size3 | None,
        num_classes: int,
        head: HeadKind,
        head_width: int,
        dropout: float,
        seed: int,
        gradient_checkpointing: bool = False,
        segmentation: SegmentationSettings | None = None,
    ) -> None:
        super().__init__()
        if not any(parameter.requires_grad for parameter in encoder.parameters()):
            raise ValueError(f"this {encoder.family} encoder was loaded for inference; load it with trainable=True")
        _check_pooling(encoder, pooling, coarse_grid)
        self.encoder = encoder
        self.pooling = pooling
        self.coarse_grid = coarse_grid
        self.num_classes = num_classes
        self.head_kind = head
        self.head_width = head_width
        self.dropout = dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.adapters: AdapterSettings | None = None
        cells = coarse_grid if pooling == "grid" and coarse_grid is not None else (1, 1, 1)
        num_features = encoder.width * cells[0] * cells[1] * cells[2]
        self.head = build_head(num_features, num_classes, head, head_width, dropout, seed)
        self.decoder: SegmentationDecoder | None = None
        if segmentation is not None:
            self.decoder = SegmentationDecoder(
                encoder.width, num_classes=segmentation.num_classes, size=segmentation.size, seed=seed
            )
        self.returns_maps = False
        # what the encoder held before any training: only tensors that differ from it are saved
        self.loaded_digests = digest_tensors(encoder.backbone.state_dict())

    @property
    def backbone(self) -> Backbone:
        """The encoder's network."""
        return cast(Backbone, self.encoder.backbone)

    @property
    def first_trainable_block(self) -> int:
        """The first block that trains: all before it is frozen; 0 also where the stem trains.

        The number of blocks where none trains: what enters the encoder's end is then fixed.
        """
        return self._first_block(trained_depths(self))

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of inputs that were prepared by ``encoder.spec``.

        While `returning_maps`, the decoder's logits (K, H, W) of each row follow its C ones, flattened.

        Raises:
            ValueError: the input's channels or size are not those of the spec.
        """
        trained = trained_depths(self)  # walks all parameters: once a pass
        first = self._first_block(trained)
        if 0 not in trained:
            return self._run_trained(self.run_prefix(x_BCDHW, first), first)
        self.encoder.check_input(x_BCDHW)
        return self._run_trained(self.backbone.embed(x_BCDHW), 0)

    def run_prefix(self, x_BCDHW: torch.Tensor, block: int) -> torch.Tensor:
        """What enters `block` (the number of blocks: what enters the end), without gradients and in eval mode.

        Raises:
            ValueError: there is no such block, or the input's channels or size are not those of the spec.
        """
        self._check_block(block)
        self.encoder.check_input(x_BCDHW)
        with torch.no_grad(), self._evaluating(block):
            return self.backbone.run_blocks(self.backbone.embed(x_BCDHW), 0, block)

    def run_suffix(self, hidden: torch.Tensor, block: int) -> torch.Tensor:
        """Logits (B, C) from what enters `block`; frozen blocks up to the first trained one run without gradients.

        ``run_suffix(run_prefix(x, k), k)`` is ``forward(x)``, bit by bit, for every k up to `first_trainable_block`.

        Raises:
            ValueError: there is no such block.
        """
        self._check_block(block)
        first = max(block, self.first_trainable_block)
        if block < first:
            with torch.no_grad():
                hidden = self.backbone.run_blocks(hidden, block, first)
        return self._run_trained(hidden, first)

    def train(self, mode: bool = True) -> "PixelModel":
        """Training mode for what trains; what is frozen stays in eval mode."""
        super().train(mode)
        if mode:
            freeze_modes(self)
        return self

    def _run_trained(self, hidden: torch.Tensor, first: int) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            for index in range(first, self.backbone.num_blocks):
                hidden = self._run_checkpointed(hidden, index)
        else:
            hidden = self.backbone.run_blocks(hidden, first, self.backbone.num_blocks)
        tokens = self.encoder.split(self.backbone.finish(hidden))
        logits_BC: torch.Tensor = self.head(pool_tokens(tokens, self.pooling, self.coarse_grid))
        if self.decoder is None or not self.returns_maps:
            return logits_BC
        maps_BKHW = self.decoder(tokens)
        return torch.cat([logits_BC, maps_BKHW.flatten(1).to(logits_BC.dtype)], dim=1)

    @contextmanager
    def returning_maps(self, is_wanted: bool = True) -> Iterator[None]:
        """Rows carry the decoder's map behind their logits; see :meth:`split_maps`."""
        before, self.returns_maps = self.returns_maps, is_wanted and self.decoder is not None
        try:
            yield
        finally:
            self.returns_maps = before

    def split_maps(self, out_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (B, C), and the decoder's (B, K, H, W) where rows carry them."""
        if self.decoder is None or out_B.shape[1] == self.num_classes:
            return out_B, None
        maps_BKHW = out_B[:, self.num_classes :].reshape(-1, self.decoder.num_classes, *self.decoder.size)
        return out_B[:, : self.num_classes], maps_BKHW

    def _first_block(self, trained: set[int]) -> int:
        return min(max(min(trained, default=self.backbone.num_blocks + 1) - 1, 0), self.backbone.num_blocks)

    def _check_block(self, block: int) -> None:
        if not 0 <= block <= self.backbone.num_blocks:
            raise ValueError(f"block must lie in 0…{self.backbone.num_blocks}, the number of blocks; got {block}")

    @contextmanager
    def _evaluating(self, block: int) -> Iterator[None]:
        """Eval mode for the stem and the blocks before `block`."""
        training = [
            module
            for name, module in self.encoder.backbone.named_modules()
            if module.training and self.backbone.depth_of(name) <= block
        ]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _run_checkpointed(self, hidden: torch.Tensor, index: int) -> torch.Tensor:
        run = partial(self.backbone.run_blocks, start=index, stop=index + 1)
        norms = [
            module
            for name, module in self.encoder.backbone.named_modules()
            if isinstance(module, _BatchNorm) and module.training and self.backbone.depth_of(name) == index + 1
        ]

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _keeping_statistics(norms)

        out: torch.Tensor = checkpoint(run, hidden, use_reentrant=False, context_fn=contexts)
        return out


def build_head(
    num_features: int, num_classes: int, kind: HeadKind, head_width: int, dropout: float, seed: int
) -> nn.Sequential:
    """Features to logits; the first weights come from the stream (seed, "pixel head").

    The output layer is normal of deviation 0.01, a hidden one of 1/√(its inputs); biases are 0.
    """
    width = num_features if kind == "linear" else head_width
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.device("meta"):  # spares the layers' own initialisation, which draws from the global generator
        if kind == "mlp":
            layers["hidden"] = nn.Linear(num_features, head_width)
            layers["activation"] = nn.GELU()
        layers["dropout"] = nn.Dropout(dropout)
        layers["output"] = nn.Linear(width, num_classes)
    head = nn.Sequential(layers).to_empty(device="cpu")
    generator = torch_stream(seed, "pixel head")
    for name, layer in layers.items():
        if isinstance(layer, nn.Linear):
            std = _OUTPUT_STD if name == "output" else layer.in_features**-0.5
            nn.init.normal_(layer.weight, std=std, generator=generator)
            nn.init.zeros_(layer.bias)
    return head


def _check_pooling(encoder: Encoder, pooling: Pooling, coarse_grid: Size3 | None) -> None:
    if pooling == "cls" and not encoder.num_prefix_tokens:
        raise UserError(
            f"features.pooling: cls needs a class token, and this {encoder.family} encoder has none; take mean."
        )
    if pooling == "grid" and (
        coarse_grid is None or any(c > f for c, f in zip(coarse_grid, encoder.grid, strict=True))
    ):
        raise UserError(f"features.grid must not be finer than the token grid {encoder.grid}; got {coarse_grid}.")


@contextmanager
def _keeping_statistics(norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms that forget what they count: a block computed anew would otherwise be counted twice."""
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept):
        norm._buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept):
            norm._buffers.update(buffers)
