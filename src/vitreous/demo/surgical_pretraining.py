"""Pretrains the surgical sample's small V-JEPA 2 on unlabelled synthetic clips.

    python -m vitreous.demo.surgical_pretraining --out DIR

writes ``surgical_vjepa2.safetensors`` (the encoder under transformers' names) with its facts in
``surgical_pretraining.json``. The clips come from random streams that no cohort uses, whatever its seed; no label is
kept.

Axes: B batch, C channel, T frame, H row, W column, V visible token, E width.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from vitreous.core.files import replacing, write_json
from vitreous.core.progress import Advance, progress_bar
from vitreous.core.streams import numpy_stream, torch_stream
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.demo.masked_latent import MaskedLatentModel, draw_masks, effective_rank
from vitreous.demo.surgical import PlantedBlindness, draw_surgical_video, film_frame
from vitreous.demo.surgical_cohort import GENERATOR_VERSION

declare_torchvision_schemas()

from transformers import VJEPA2Config  # noqa: E402
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder  # noqa: E402

NAME = "surgical_vjepa2"
# ImageNet's, as of every V-JEPA 2
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SurgicalPretraining:
    """Everything that decides the checkpoint, besides the library versions and the processor.

    Args:
        videos, clips_per_video: unlabelled synthetic clips of `frames` neighbouring frames.
        hidden_share: share of the tokens that is predicted.
        momentum: of the target encoder at the first step; it rises linearly to 1.
    """

    frames: int = 8
    size_px: int = 64
    patch_size: int = 16
    tubelet_size: int = 2
    width: int = 96
    depth: int = 4
    num_heads: int = 4
    predictor_width: int = 64
    predictor_depth: int = 2
    videos: int = 120
    clips_per_video: int = 4
    steps: int = 300
    batch_size: int = 16
    warmup_steps: int = 40
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    hidden_share: float = 0.75
    momentum: float = 0.97
    seed: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """Of transformers' `VJEPA2Config`."""
        return {
            "model_type": "vjepa2",
            "crop_size": self.size_px,
            "frames_per_clip": self.frames,
            "patch_size": self.patch_size,
            "tubelet_size": self.tubelet_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.num_heads,
            "mlp_ratio": 4.0,
        }


class MaskableClipEncoder(nn.Module):
    """V-JEPA 2's encoder, with tokens left out; positions are rotary and go by the tokens' places."""

    def __init__(self, recipe: SurgicalPretraining) -> None:
        super().__init__()
        config = VJEPA2Config(**{name: value for name, value in recipe.config.items() if name != "model_type"})
        config._attn_implementation = "sdpa"
        self.encoder = VJEPA2Encoder(config)
        self.embed_dim = recipe.width
        side = recipe.size_px // recipe.patch_size
        self.grid = (recipe.frames // recipe.tubelet_size, side, side)

    def embed(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Every patch's token, (B, N, E)."""
        tokens_BNE: torch.Tensor = self.encoder.embeddings(x_BCTHW.transpose(1, 2))
        return tokens_BNE

    def encode_at(self, tokens_BVE: torch.Tensor, places_BV: torch.Tensor) -> torch.Tensor:
        """Latents of these tokens alone, (B, V, E)."""
        for layer in self.encoder.layer:
            tokens_BVE, _ = layer(tokens_BVE, position_mask=places_BV)
        latents_BVE: torch.Tensor = self.encoder.layernorm(tokens_BVE)
        return latents_BVE

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        places_N = torch.arange(int(np.prod(self.grid)))
        return self.encode_at(self.embed(x_BCTHW), places_N.expand(len(x_BCTHW), -1))


@torch.no_grad()
def initialise_clip_encoder(encoder: nn.Module, generator: torch.Generator) -> None:
    """Linear maps and patches that keep the variance of their input: see `initialise_vit3d`."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            fan_in = int(np.prod(module.weight.shape[1:]))
            nn.init.trunc_normal_(module.weight, std=fan_in**-0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def draw_clip(video: int, clip: int, recipe: SurgicalPretraining) -> torch.Tensor:
    """An unlabelled clip as the encoder sees it, (C, T, H, W)."""
    names = ("surgical pretraining", video)  # cohorts name their streams ("surgical", …)
    operation = draw_surgical_video(recipe.seed, *names)
    start = float(numpy_stream(recipe.seed, *names, clip).uniform(0, 0.5))
    frames = [
        film_frame(
            operation,
            start + 0.5 * k / recipe.frames,
            size_px=recipe.size_px,
            blindness=PlantedBlindness(),
            seed=recipe.seed,
            names=(*names, clip, k),
        )[0]
        for k in range(recipe.frames)
    ]
    clip_THWC = torch.from_numpy(np.stack(frames)).float() / 255
    normalised_THWC = (clip_THWC - torch.tensor(_MEAN)) / torch.tensor(_STD)
    return normalised_THWC.permute(3, 0, 1, 2).contiguous()


def draw_clips(recipe: SurgicalPretraining, advance: Advance) -> torch.Tensor:
    """All clips in half precision (N, C, T, H, W)."""
    clips = []
    for number in range(recipe.videos * recipe.clips_per_video):
        clips.append(draw_clip(number // recipe.clips_per_video, number % recipe.clips_per_video, recipe).half())
        advance(1)
    return torch.stack(clips)


def build_clip_model(recipe: SurgicalPretraining) -> MaskedLatentModel:
    """The model before its first step; its weights are decided by the recipe's seed."""
    return MaskedLatentModel(
        MaskableClipEncoder(recipe),
        predictor_width=recipe.predictor_width,
        predictor_depth=recipe.predictor_depth,
        generator=torch_stream(recipe.seed, "surgical pretraining", "weights"),
        initialise=initialise_clip_encoder,
    )


def train_on_clips(
    model: MaskedLatentModel, x_NCTHW: torch.Tensor, recipe: SurgicalPretraining, advance: Advance
) -> list[float]:
    """AdamW with warm-up and cosine; returns the loss of every step."""
    learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learnable, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.95)
    )
    history = []
    for step in range(recipe.steps):
        rng = numpy_stream(recipe.seed, "surgical pretraining", "step", step)
        warmup = min((step + 1) / recipe.warmup_steps, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warmup * 0.5 * (1 + np.cos(np.pi * step / recipe.steps))
        x_BCTHW = x_NCTHW[torch.from_numpy(rng.integers(len(x_NCTHW), size=recipe.batch_size))].float()
        if rng.uniform() < 0.5:
            x_BCTHW = x_BCTHW.flip(4)
        visible_BV, hidden_BM = draw_masks(recipe.batch_size, model.context_encoder.grid, recipe.hidden_share, rng)
        loss = model.loss(x_BCTHW, x_BCTHW, visible_BV, hidden_BM)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learnable, 1.0)
        optimizer.step()
        model.update_target(recipe.momentum + (1 - recipe.momentum) * step / recipe.steps)
        history.append(float(loss.detach()))
        advance(1)
    return history


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: draw, train, write."""
    parser = argparse.ArgumentParser(prog="python -m vitreous.demo.surgical_pretraining", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and its facts")
    out: Path = parser.parse_args(arguments).out
    recipe = SurgicalPretraining()
    started = time.perf_counter()
    with progress_bar("Drawing clips", recipe.videos * recipe.clips_per_video) as advance:
        x_NCTHW = draw_clips(recipe, advance)
    model = build_clip_model(recipe)
    with progress_bar("Pretraining", recipe.steps) as advance:
        loss = train_on_clips(model, x_NCTHW, recipe, advance)
    model.eval()
    with torch.no_grad():
        features_ND = model.context_encoder(x_NCTHW[:128].float()).mean(1)
    tensors = {name: tensor.contiguous() for name, tensor in model.context_encoder.encoder.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / f"{NAME}.safetensors") as aside:
        save_file(tensors, str(aside), metadata={"config": json.dumps(recipe.config)})
    facts = {
        "schema_version": 1,
        "recipe": asdict(recipe),
        "config": recipe.config,
        "generator_version": GENERATOR_VERSION,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started, 1),
        "loss": [round(value, 5) for value in loss],
        "feature_std": round(float(features_ND.std(0).mean()), 5),
        "feature_rank": round(effective_rank(features_ND), 2),
    }
    write_json(out / "surgical_pretraining.json", facts)


if __name__ == "__main__":
    main()
