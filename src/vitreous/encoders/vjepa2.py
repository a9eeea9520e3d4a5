"""V-JEPA 2's encoder, built from transformers' modules: their names and weights, our attention and memory.

Three rotary positions (time, row, column) turn queries and keys; nothing is learned of them, so that any number and
size of frames works. transformers computes them anew in every block; here they are kept.

Axes: B clip, C channel, D frame, H row, W column (pixels), N token = T·h·w, E width, F width of one head.
Source: Assran et al., V-JEPA 2 (2025); facebookresearch/vjepa2; transformers.models.vjepa2.
"""

import math
from typing import Any

import torch
from torch import nn

from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.encoders.attention import attend
from vitreous.encoders.initialisation import truncated_normal_
from vitreous.encoders.vit3d import TOKENS_PER_CHUNK, project_patches

declare_torchvision_schemas()

from transformers import VJEPA2Config  # noqa: E402
from transformers.models.vjepa2.modeling_vjepa2 import (  # noqa: E402
    VJEPA2Encoder,
    VJEPA2Layer,
    VJEPA2RopeAttention,
)

HOLDER = "model."
Size3 = tuple[int, int, int]
_BASE = 10000.0


class RotaryAttention(VJEPA2RopeAttention):
    """transformers' attention with kept rotary positions and :func:`~vitreous.encoders.attention.attend`."""

    def forward(self, hidden_BNE: torch.Tensor, rope_2NF: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        q_BHNF, k_BHNF, v_BHNF = (
            project(hidden_BNE).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        q_BHNF, k_BHNF = rotate(q_BHNF, rope_2NF), rotate(k_BHNF, rope_2NF)
        out_BHNF = attend(q_BHNF, k_BHNF, v_BHNF.contiguous())
        projected_BNE: torch.Tensor = self.proj(out_BHNF.transpose(1, 2).flatten(2))
        return projected_BNE


class ClipLayer(VJEPA2Layer):  # type: ignore[no-untyped-call]
    """transformers' block; its residual stream and norms stay in float32 whatever the matrices' precision."""

    def forward(self, x_BNE: torch.Tensor, rope_2NF: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        dtype = matrix_dtype(self.attention.proj)
        x_BNE = x_BNE + self.attention(self.norm1(x_BNE).to(dtype), rope_2NF)
        if torch.is_grad_enabled():
            out_BNE: torch.Tensor = x_BNE + self.mlp(self.norm2(x_BNE).to(dtype))
            return out_BNE
        for chunk in torch.split(x_BNE, TOKENS_PER_CHUNK, dim=1):  # its hidden layer is four times as wide
            chunk += self.mlp(self.norm2(chunk).to(dtype))
        return x_BNE


def matrix_dtype(module: Any) -> torch.dtype:
    """The number format of a linear layer, an adapted one included."""
    layer = getattr(module, "base_layer", module)
    dtype: torch.dtype = layer.weight.dtype
    return dtype


def rope_tables(grid: Size3, head_width: int, device: torch.device) -> torch.Tensor:
    """Cosines, and sines with the sign of the partner, of every token: (2, N, F) float32.

    A third of the head (rounded down to an even number) belongs to each of time, row and column, in this order; what is
    left is not turned. As in the published code, frequencies are tiled while partners are neighbours.
    """
    part = 2 * ((head_width // 3) // 2)
    omega_K = torch.arange(part // 2, dtype=torch.float32, device=device) / (part / 2.0)
    omega_K = 1.0 / _BASE**omega_K
    positions = torch.meshgrid(*(torch.arange(size, device=device) for size in grid), indexing="ij")
    angles = [(position.flatten()[:, None] * omega_K).repeat(1, 2) for position in positions]
    angles.append(torch.zeros(math.prod(grid), head_width - 3 * part, device=device))
    angles_NF = torch.cat(angles, dim=1)
    sign_F = torch.tensor([-1.0, 1.0], device=device).repeat(-(-head_width // 2))[:head_width]
    return torch.stack([angles_NF.cos(), angles_NF.sin() * sign_F])


def rotate(x_BHNF: torch.Tensor, rope_2NF: torch.Tensor) -> torch.Tensor:
    """Queries or keys turned by their positions; computed in float32, returned in their own format."""
    partners_BHNF = x_BHNF.view(*x_BHNF.shape[:-1], -1, 2).flip(-1).flatten(-2)
    cos_NF, sin_NF = rope_2NF.unbind(0)
    return torch.addcmul(x_BHNF * cos_NF, partners_BHNF, sin_NF).to(x_BHNF.dtype)


class VJEPA2Backbone(nn.Module):
    """Patches of two frames each, blocks with rotary positions, a norm; no class token.

    Args:
        config: of transformers; `crop_size` and `frames_per_clip` are the input until `set_input_size` says otherwise.

    Raises:
        ValueError: the width is no multiple of the heads, or a head has an odd width.
    """

    num_prefix_tokens = 0

    def __init__(self, config: VJEPA2Config) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads or (config.hidden_size // config.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, with an even quotient; got "
                f"{config.hidden_size} and {config.num_attention_heads}"
            )
        self.model = VJEPA2Encoder(config)
        rates = (config.hidden_size, config.num_attention_heads, config.mlp_ratio)
        self.model.layer = nn.ModuleList(_layer(config, *rates) for _ in range(config.num_hidden_layers))
        self.width = config.hidden_size
        self.num_blocks = config.num_hidden_layers
        patch = int(config.patch_size)  # type: ignore[arg-type]
        self.patch: Size3 = (config.tubelet_size, patch, patch)
        self._head_width = config.hidden_size // config.num_attention_heads
        self._eps_of_init = config.initializer_range
        self._ropes: dict[tuple[Size3, torch.device], torch.Tensor] = {}
        self._size: Size3 = (config.frames_per_clip, config.crop_size, config.crop_size)

    def init_weights(self, generator: torch.Generator) -> None:
        """Matrices from a normal of deviation 0.02 cut at ±0.04; biases 0, norms 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                truncated_normal_(module.weight, generator, self._eps_of_init)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def set_precision(self, dtype: torch.dtype) -> None:
        """Matrix products in `dtype`; norms, rotary positions and the residual stream stay in float32."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                module.to(dtype)

    def set_input_size(self, size: Size3) -> None:
        """Take inputs of another number of frames, rows and columns; there are no learned positions to bring along."""
        self.grid_of(size)
        self._size = size

    def truncate(self, layer: int) -> None:
        """Leave out the blocks after block number `layer`, counted from 1; the norm stays."""
        self.model.layer = self.model.layer[:layer]
        self.num_blocks = layer

    def grid_of(self, size: Size3) -> Size3:
        """Tokens along time, rows and columns."""
        if any(extent % step or extent < step for extent, step in zip(size, self.patch)):
            raise ValueError(
                f"frames and pixels must be multiples of the tubelet and patch {self.patch}; got an input of {size}"
            )
        time, rows, columns = (extent // step for extent, step in zip(size, self.patch))
        return time, rows, columns

    def embed(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """Patches, in the order time, row, column; positions come in the blocks."""
        if tuple(x_BCDHW.shape[2:]) != self._size:
            raise ValueError(f"this backbone is set to inputs of {self._size}; got {tuple(x_BCDHW.shape[2:])}")
        projection = self.model.embeddings.patch_embeddings.proj
        return project_patches(x_BCDHW, projection.weight, projection.bias).float()

    def run_blocks(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Blocks from `start` to before `stop`."""
        rope_2NF = self._rope(hidden.device)
        for layer in self.model.layer[start:stop]:
            hidden = layer(hidden, rope_2NF)
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm."""
        normed_BNE: torch.Tensor = self.model.layernorm(hidden)
        return normed_BNE

    def depth_of(self, name: str) -> int:
        """0 patch embedding, i + 1 block i, last the norm."""
        parts = name.removeprefix(HOLDER).split(".")
        if parts[0] == "layer" and len(parts) > 1:
            return int(parts[1]) + 1
        return self.num_blocks + 1 if parts[0] == "layernorm" else 0

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return self.finish(self.run_blocks(self.embed(x_BCDHW), 0, self.num_blocks))

    def _rope(self, device: torch.device) -> torch.Tensor:
        key = (self.grid_of(self._size), device)
        if key not in self._ropes:
            self._ropes = {key: rope_tables(key[0], self._head_width, device)}
        return self._ropes[key]


def _layer(config: VJEPA2Config, width: int, heads: int, mlp_ratio: float) -> ClipLayer:
    layer = ClipLayer(config, 0.0, width, heads, mlp_ratio)
    layer.attention = RotaryAttention(config, width, heads)
    return layer
