"""Small pixel models: a transformer of volumes, and a network with batch norms, dropout and a class token."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vitreous.core.input_spec import ImageSpec
from vitreous.encoders.catalog import build_random_encoder
from vitreous.encoders.encoder import Encoder
from vitreous.encoders.initialisation import truncated_normal_
from vitreous.features.pooling import Pooling
from vitreous.recipes.lora import adapter_tensors, add_adapters
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.trainable import parameter_groups

DEPTH = 3
VIT3D = {"img_size": [4, 16, 16], "patch_size": [2, 8, 8], "embed_dim": 12, "depth": DEPTH, "num_heads": 2}


class ConvBlock(nn.Module):
    """Convolution, batch norm, dropout: all three ways in which a frozen block could move or fluctuate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.3)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        out_BCHW: torch.Tensor = x_BCHW + self.drop(F.relu(self.bn(self.conv(x_BCHW))))
        return out_BCHW


class SmallNet(nn.Module):
    """A backbone with a class token, batch norms and dropout in every part; an end without parameters."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.num_blocks, self.num_prefix_tokens = width, DEPTH, 1
        self.stem = nn.Conv2d(3, width, 2, 2)
        self.stem_bn = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(DEPTH))
        self.last_drop = nn.Dropout(0.2)

    def embed(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.stem_bn(self.stem(x_BCDHW[:, :, 0]))
        return embedded

    def run_blocks(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        for block in self.blocks[start:stop]:
            hidden = block(hidden)
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        tokens_BND = self.last_drop(hidden.flatten(2).transpose(1, 2))
        return torch.cat([tokens_BND.amax(1, keepdim=True), tokens_BND], dim=1)

    def depth_of(self, name: str) -> int:
        parts = name.split(".")
        if parts[0] == "blocks" and len(parts) > 1:
            return int(parts[1]) + 1
        return DEPTH + 1 if parts[0] == "last_drop" else 0

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return self.finish(self.run_blocks(self.embed(x_BCDHW), 0, DEPTH))


def vit_encoder() -> Encoder:
    return build_random_encoder("vit3d", architecture=VIT3D, seed=1, trainable=True)


def conv_encoder() -> Encoder:
    generator = torch.Generator().manual_seed(0)
    net = SmallNet()
    for parameter in net.parameters():
        truncated_normal_(parameter.data, generator, std=0.3)
    spec = ImageSpec(size=(8, 8))
    receipt = vit_encoder().receipt
    return Encoder(
        net, (1, 4, 4), spec, receipt, width=8, family="small", architecture={}, weights_hash="0", precision="fp32"
    )


ENCODERS: dict[str, Callable[[], Encoder]] = {"vit": vit_encoder, "conv": conv_encoder}


def build(encoder: str = "vit", *, pooling: Pooling = "mean", dropout: float = 0.0, **changes: Any) -> PixelModel:
    given = {"coarse_grid": None, "num_classes": 4, "head": "linear", "head_width": 6, "seed": 3, **changes}
    return PixelModel(ENCODERS[encoder](), pooling=pooling, dropout=dropout, **given)


def images(encoder: str = "vit", batch: int = 5, seed: int = 0) -> torch.Tensor:
    shape = (batch, 1, 4, 16, 16) if encoder == "vit" else (batch, 3, 1, 8, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapt(model: PixelModel, **changes: Any) -> PixelModel:
    given = {"rank": 2, "alpha": 6.0, "dropout": 0.0, "targets": ("qkv",), "layers": None, "rslora": False}
    add_adapters(model, **{**given, "dora": False, "seed": 7, **changes})
    return model


def fill(model: PixelModel) -> PixelModel:
    """Adapters as after training: B is no longer 0."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def train_steps(model: PixelModel, encoder: str = "vit", steps: int = 3, weight_decay: float = 0.0) -> None:
    groups = parameter_groups(model, lr_head=0.05, lr_encoder=0.05, layer_decay=1.0, weight_decay=weight_decay)
    optimiser = torch.optim.AdamW(groups)
    model.train()
    for step in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(images(encoder, 4, seed=step)), torch.tensor([0, 1, 2, 3])).backward()
        optimiser.step()
