"""Pretrains the demo's three small encoders on unlabelled synthetic volumes.

    python -m vitreous.demo.pretraining --out DIR [--only NAME]

writes ``multi_scanner.safetensors`` (all four scanners), ``scanner_1.safetensors`` (aurora) and
``scanner_2.safetensors`` (borealis) with ``pretraining.json`` (loss curve, health of the features, seconds).
The volumes come from random streams that no cohort uses, whatever its seed; no label, severity or age is kept.

Axes: B batch, C channel, D H W voxels.
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

from vitreous.core.files import replacing, write_json
from vitreous.core.input_spec import InputSpec
from vitreous.core.progress import Advance, progress_bar
from vitreous.core.streams import numpy_stream, torch_stream
from vitreous.demo.acquisition import scan_eye
from vitreous.demo.anatomy import draw_eye, draw_person
from vitreous.demo.dicom import stored_values
from vitreous.demo.disease import draw_severity
from vitreous.demo.masked_latent import (
    MaskableViT3D,
    MaskedLatentModel,
    draw_masks,
    effective_rank,
    initialise_vit3d,
)
from vitreous.demo.participants import AGE_MEAN, AGE_RANGE, AGE_SD
from vitreous.demo.recipe import CLASS_SHARES, GENERATOR_VERSION, CohortRecipe
from vitreous.demo.scanners import SCANNERS, SITES
from vitreous.inputs.preprocessing import preprocess_volume
from vitreous.inputs.volume import Volume

Size3 = tuple[int, int, int]

PRETRAINED: dict[str, tuple[str, ...]] = {
    "multi_scanner": tuple(SCANNERS),
    "scanner_1": ("aurora",),
    "scanner_2": ("borealis",),
}
"""The three checkpoints and the scanners that each has seen."""


@dataclass(frozen=True)
class PretrainingRecipe:
    """Everything that decides a checkpoint, besides the library versions and the processor.

    Args:
        volumes: unlabelled volumes, spread evenly over the scanners. The volumes of one step all come from one
            scanner, drawn anew each step, so that the standardised targets do not spend themselves on telling
            scanners apart.
        hidden_share: share of the tokens that is predicted.
        momentum: of the target encoder at the first step; it rises linearly to 1.
        input_noise: greatest standard deviation of the noise added to what the context encoder sees, in
            units of the normalised volume; the target encoder sees the volume without it.
    """

    img_size: Size3 = (16, 96, 96)
    patch_size: Size3 = (4, 16, 16)
    width: int = 128
    depth: int = 4
    num_heads: int = 2
    predictor_width: int = 64
    predictor_depth: int = 2
    volumes: int = 800
    steps: int = 260
    batch_size: int = 32
    warmup_steps: int = 40
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    hidden_share: float = 0.7
    momentum: float = 0.97
    input_noise: float = 0.4
    seed: int = 0


@dataclass(frozen=True)
class Pretrained:
    """One finished checkpoint.

    Args:
        tensors: of the context encoder, under its own names.
        loss: of every step.
        feature_std, feature_rank: of the mean-pooled features of 128 volumes: mean standard deviation over
            dimensions, and RankMe; both near their lowest (0 and 1) mean collapse.
        seconds: wall time; of drawing the volumes too in the shipped record, of the training alone since.
    """

    tensors: dict[str, torch.Tensor]
    loss: list[float]
    feature_std: float
    feature_rank: float
    seconds: float


def draw_volume(index: int, device: str, seed: int, spec: InputSpec) -> torch.Tensor:
    """An unlabelled volume as an encoder of `spec` sees it, (C, D, H, W)."""
    names = ("pretraining", device, index)  # cohorts name their streams ("participant", …) and ("scan", …)
    rng = numpy_stream(seed, *names)
    grade = int(rng.choice(len(CLASS_SHARES), p=np.asarray(CLASS_SHARES) / sum(CLASS_SHARES)))
    demo = CohortRecipe()
    severity = draw_severity(grade, demo.strength, demo.heterogeneity, rng)
    person = draw_person(severity, float(np.clip(rng.normal(AGE_MEAN, AGE_SD), *AGE_RANGE)), seed, *names)
    laterality, site = str(rng.choice(["R", "L"])), SITES[str(rng.choice(list(SITES)))]
    scanner = SCANNERS[device]
    grey, _, _ = scan_eye(draw_eye(person, laterality, seed, *names), laterality, scanner, site, seed, *names)
    stored = stored_values(grey, scanner.bits).astype(np.float32)
    return preprocess_volume(Volume(stored, scanner.spacing_mm), spec)


def draw_pool(devices: Sequence[str], recipe: PretrainingRecipe, advance: Advance) -> torch.Tensor:
    """The recipe's volumes, the scanners taking turns, in half precision (N, C, D, H, W).

    Args:
        advance: called after each volume.
    """
    spec = InputSpec(size=recipe.img_size)
    pool = []
    for number in range(recipe.volumes):
        device = devices[number % len(devices)]
        pool.append(draw_volume(number // len(devices), device, recipe.seed, spec).half())
        advance(1)
    return torch.stack(pool)


def pretrain(x_NCDHW: torch.Tensor, num_scanners: int, recipe: PretrainingRecipe, advance: Advance) -> Pretrained:
    """Train on the volumes of :func:`draw_pool`, then look at the features' health.

    Args:
        advance: called after each step.
    """
    started = time.perf_counter()
    model = build_model(recipe)
    loss = train(model, x_NCDHW, num_scanners, recipe, advance)
    model.eval()
    with torch.no_grad():
        features_ND = model.context_encoder(x_NCDHW[:128].float()).mean(1)
    return Pretrained(
        tensors={name: tensor.contiguous() for name, tensor in model.context_encoder.state_dict().items()},
        loss=loss,
        feature_std=float(features_ND.std(0).mean()),
        feature_rank=effective_rank(features_ND),
        seconds=time.perf_counter() - started,
    )


def build_model(recipe: PretrainingRecipe) -> MaskedLatentModel:
    """The model before its first step; its weights are decided by the recipe's seed."""
    encoder = MaskableViT3D(
        recipe.img_size,
        recipe.patch_size,
        embed_dim=recipe.width,
        depth=recipe.depth,
        num_heads=recipe.num_heads,
    )
    return MaskedLatentModel(
        encoder,
        predictor_width=recipe.predictor_width,
        predictor_depth=recipe.predictor_depth,
        generator=torch_stream(recipe.seed, "pretraining", "weights"),
        initialise=initialise_vit3d,
    )


def train(
    model: MaskedLatentModel, x_NCDHW: torch.Tensor, num_scanners: int, recipe: PretrainingRecipe, advance: Advance
) -> list[float]:
    """AdamW with warm-up and cosine; returns the loss of every step.

    Args:
        x_NCDHW: volumes, the scanners taking turns.
    """
    learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learnable, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.95)
    )
    history = []
    for step in range(recipe.steps):
        rng = numpy_stream(recipe.seed, "pretraining", "step", step)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        per_scanner = len(x_NCDHW) // num_scanners
        picked = rng.integers(0, per_scanner, recipe.batch_size) * num_scanners + rng.integers(num_scanners)
        x_BCDHW = x_NCDHW[torch.from_numpy(picked)].float()
        flipped = [axis for axis in (2, 4) if rng.uniform() < 0.5]  # slices and columns; up stays up
        x_BCDHW = x_BCDHW.flip(flipped)
        noisy_BCDHW = _add_noise(x_BCDHW, recipe, step)
        visible_BV, hidden_BM = draw_masks(recipe.batch_size, model.context_encoder.grid, recipe.hidden_share, rng)
        loss = model.loss(noisy_BCDHW, x_BCDHW, visible_BV, hidden_BM)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learnable, 1.0)
        optimizer.step()
        model.update_target(recipe.momentum + (1 - recipe.momentum) * step / recipe.steps)
        history.append(float(loss.detach()))
        advance(1)
    return history


def _schedule(step: int, recipe: PretrainingRecipe) -> float:
    warmup = min((step + 1) / recipe.warmup_steps, 1.0)
    return float(warmup * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / recipe.steps))))


def _add_noise(x_BCDHW: torch.Tensor, recipe: PretrainingRecipe, step: int) -> torch.Tensor:
    stream = torch_stream(recipe.seed, "pretraining", "noise", step)
    strength_B1111 = torch.rand(len(x_BCDHW), 1, 1, 1, 1, generator=stream) * recipe.input_noise
    return x_BCDHW + strength_B1111 * torch.randn(x_BCDHW.shape, generator=stream)


def save_checkpoint(path: Path, pretrained: Pretrained, devices: Sequence[str], recipe: PretrainingRecipe) -> None:
    """Write the encoder as safetensors; its metadata hold ``config`` and ``training`` as JSON."""
    config = {
        "image_size": recipe.img_size,
        "patch_size": recipe.patch_size,
        "num_heads": recipe.num_heads,
    }
    training: dict[str, Any] = {
        "objective": "masked latent prediction (vitreous.demo.masked_latent)",
        "data": f"synthetic volumes, generator version {GENERATOR_VERSION}",
        "scanners": list(devices),
        "recipe": asdict(recipe),
        "final_loss": round(float(np.mean(pretrained.loss[-20:])), 5),
    }
    metadata = {"config": json.dumps(config), "training": json.dumps(training)}
    with replacing(path) as aside:
        save_file(pretrained.tensors, str(aside), metadata=metadata)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: pretrain all three checkpoints, or one."""
    parser = argparse.ArgumentParser(prog="python -m vitreous.demo.pretraining", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints and pretraining.json")
    parser.add_argument("--only", choices=list(PRETRAINED), help="make this checkpoint only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    recipe = PretrainingRecipe()
    for name, devices in PRETRAINED.items():
        if given.only not in (None, name):
            continue
        # one bar after the other: older versions of rich refuse two at once
        with progress_bar(f"{name}: drawing volumes", recipe.volumes) as advance:
            x_NCDHW = draw_pool(devices, recipe, advance)
        with progress_bar(f"{name}: training", recipe.steps) as advance:
            pretrained = pretrain(x_NCDHW, len(devices), recipe, advance)
        save_checkpoint(given.out / f"{name}.safetensors", pretrained, devices, recipe)
        _record(given.out / "pretraining.json", name, devices, recipe, pretrained)


def _record(path: Path, name: str, devices: Sequence[str], recipe: PretrainingRecipe, pretrained: Pretrained) -> None:
    """Add one checkpoint's facts to ``pretraining.json``."""
    facts: dict[str, Any] = {"schema_version": 1, "checkpoints": {}}
    if path.exists():
        facts = json.loads(path.read_text())
    facts["checkpoints"][name] = {
        "scanners": list(devices),
        "recipe": asdict(recipe),
        "generator_version": GENERATOR_VERSION,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": round(pretrained.seconds, 1),
        "loss": [round(value, 5) for value in pretrained.loss],
        "feature_std": round(pretrained.feature_std, 5),
        "feature_rank": round(pretrained.feature_rank, 2),
    }
    write_json(path, facts)


if __name__ == "__main__":
    main()
