"""VideoMAE's encoder, built from transformers' modules: patches with fixed positions, blocks, a norm.

Axes: B clip, C channel, D frame, H row, W column (pixels), N token = T·h·w, E width; F width of one head.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.encoders.attention import attend
from vitreous.encoders.initialisation import truncated_normal_
from vitreous.encoders.vit3d import project_patches

declare_torchvision_schemas()

from transformers import AttentionInterface, VideoMAEConfig  # noqa: E402
from transformers.models.videomae.modeling_videomae import VideoMAEEncoder, VideoMAEPatchEmbeddings  # noqa: E402

HOLDER = "model."
Size3 = tuple[int, int, int]
_ATTENTION = "vitreous"


def attend_for_transformers(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **settings: Any
) -> tuple[torch.Tensor, None]:
    """:func:`~vitreous.encoders.attention.attend` as transformers calls an attention; weights are not given.

    Raises:
        ValueError: a mask, dropout or another scale is asked for, none of which `attend` has.
    """
    scale = settings.get("scaling")
    is_usual = scale is None or math.isclose(scale, query.shape[-1] ** -0.5)
    if mask is not None or settings.get("dropout") or settings.get("is_causal") or not is_usual:
        raise ValueError("this attention has neither masks nor dropout, and scales by the head's width alone")
    return attend(query, key, value.contiguous()).transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, attend_for_transformers)


class VideoMAEBackbone(nn.Module):
    """Patches of two frames each with fixed sines added, blocks, a norm where there is one; no class token.

    Raises:
        ValueError: the width is no multiple of the heads, or frames and pixels none of tubelet and patch.
    """

    num_prefix_tokens = 0

    def __init__(self, config: VideoMAEConfig, *, has_final_norm: bool) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads; got {config.hidden_size} and "
                f"{config.num_attention_heads}"
            )
        config._attn_implementation = _ATTENTION
        patch, side = int(config.patch_size), int(config.image_size)  # type: ignore[arg-type]
        self.patch: Size3 = (config.tubelet_size, patch, patch)
        self._size: Size3 = (config.num_frames, side, side)
        self.width = config.hidden_size
        self._reduced = False
        self._positions: dict[torch.device, torch.Tensor] = {}
        self.grid_of(self._size)
        self.model = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict({"patch_embeddings": VideoMAEPatchEmbeddings(config)}),  # type: ignore[no-untyped-call]
                "encoder": VideoMAEEncoder(config),
            }
        )
        if has_final_norm:
            self.model["layernorm"] = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    @property
    def num_blocks(self) -> int:
        """Transformer blocks."""
        return len(self._layers)

    @property
    def _layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.model["encoder"].layer  # type: ignore[assignment]
        return layers

    def init_weights(self, generator: torch.Generator) -> None:
        """Matrices from a normal of deviation 0.02 cut at ±0.04; biases 0, norms 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                truncated_normal_(module.weight, generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def set_precision(self, dtype: torch.dtype) -> None:
        """In bfloat16 matrices keep their weights in it; norms and sums are left to autocast."""
        self._reduced = dtype == torch.bfloat16
        if self._reduced:
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Conv3d):
                    module.to(dtype)

    def truncate(self, layer: int) -> None:
        """Leave out the blocks after block number `layer`, counted from 1; the norm stays."""
        self.model["encoder"].layer = self._layers[:layer]

    def grid_of(self, size: Size3) -> Size3:
        """Tokens along time, rows and columns; positions are those of one size."""
        if size != self._size:
            raise ValueError(
                f"the fixed positions are those of {self._size} frames and pixels; got an input of {size}. The options "
                "num_frames and image_size set another"
            )
        if any(extent % step for extent, step in zip(size, self.patch)):
            raise ValueError(f"frames and pixels must be multiples of the tubelet and patch {self.patch}; got {size}")
        time, rows, columns = (extent // step for extent, step in zip(size, self.patch))
        return time, rows, columns

    def embed(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """Patches with their positions added, in the order time, row, column."""
        projection: Any = self.model["embeddings"]["patch_embeddings"].projection  # type: ignore[index]
        tokens_BNE = project_patches(x_BCDHW, projection.weight, projection.bias).float()
        return tokens_BNE + self._position_table(tokens_BNE.device)

    def run_blocks(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Blocks from `start` to before `stop`."""
        with self._precise(hidden):
            for layer in self._layers[start:stop]:
                hidden = layer(hidden)
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm, where there is one."""
        normed_BNE: torch.Tensor = self.model["layernorm"](hidden) if "layernorm" in self.model else hidden
        return normed_BNE

    def depth_of(self, name: str) -> int:
        """0 patch embedding, i + 1 block i, last the norm."""
        parts = name.removeprefix(HOLDER).split(".")
        if parts[:2] == ["encoder", "layer"] and len(parts) > 2:
            return int(parts[2]) + 1
        return self.num_blocks + 1 if parts[0] == "layernorm" else 0

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return self.finish(self.run_blocks(self.embed(x_BCDHW), 0, self.num_blocks))

    def _position_table(self, device: torch.device) -> torch.Tensor:
        if device not in self._positions:
            self._positions = {device: sine_positions(math.prod(self.grid_of(self._size)), self.width).to(device)}
        return self._positions[device]

    def _precise(self, x: torch.Tensor) -> AbstractContextManager[Any]:
        if not self._reduced:
            return nullcontext()
        if x.device.type == "meta":  # autocast knows no such device; shapes and counts are those of float32
            self.float()
            return nullcontext()
        return torch.autocast(x.device.type, torch.bfloat16)


def sine_positions(num_tokens: int, width: int) -> torch.Tensor:
    """(N, E) float32: sines and cosines of the token's number, in turns.

    Source: Vaswani et al. (2017), section 3.5.
    """
    number_N1 = torch.arange(num_tokens, dtype=torch.float64)[:, None]
    pair_E = torch.arange(width, dtype=torch.float64) // 2
    angles_NE = number_N1 / torch.pow(10000.0, 2 * pair_E / width)
    is_even_E = torch.arange(width) % 2 == 0
    return torch.where(is_even_E, angles_NE.sin(), angles_NE.cos()).float()
