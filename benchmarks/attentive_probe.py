"""Attentive probes on kept tokens: what sharing a loaded batch and moving the matrices to the query save, and how
cached views differ from augmenting online.

Command:   python benchmarks/attentive_probe.py --json build/attentive_probe.json
Hardware:  2 CPU cores, nothing else running
Minutes:   about 4; --quick 1
Measures:  1. seconds of a training step (forward, backward) of K heads at 2,048 tokens of 1,024: together; one after
           the other; and as torch.nn.MultiheadAttention, one after the other, which computes keys and values.
           2. AUROC on 600 test images after 30 epochs on 48 training images, mean of 5 cohorts: without augmentation,
           with K cached views, and online (another view of each image in each epoch).
Data:      1. random tokens. 2. noise images with a faint red or green square somewhere; flips and crops.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from vitreous.core.streams import stream_seed
from vitreous.encoders.catalog import build_random_encoder
from vitreous.encoders.encoder import Encoder
from vitreous.features.token_store import TokenRows
from vitreous.inputs.augmentation import AugmentSettings, augment
from vitreous.inputs.prepare import finish_input
from vitreous.recipes.attentive_heads import AttentionShape, AttentiveHeads
from vitreous.recipes.attentive_probe import fit_attentive_grid
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.probe_grid import ProbeMember, ProbeSettings

TOKENS, WIDTH, HIDDEN, HEADS, LABELS = 2048, 1024, 512, 8, 3
AUGMENT = AugmentSettings(flip=0.5, flip_axes=("H", "W"), crop=0.3)
EPOCHS = 30


class PlainHead(nn.Module):
    """The same head as one would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(WIDTH), nn.LayerNorm(HIDDEN)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, HIDDEN))
        self.attention = nn.MultiheadAttention(HIDDEN, HEADS, kdim=WIDTH, vdim=WIDTH, batch_first=True)
        self.head = nn.Linear(HIDDEN, LABELS)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = self.norm_in(x_BTD)
        pooled, _ = self.attention(self.query.expand(len(x_BTD), -1, -1), x_BTD, x_BTD, need_weights=False)
        return self.head(self.norm_out(pooled[:, 0]))


def seconds(step: Callable[[], object], repeats: int) -> float:
    step()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def measure_steps(members: int, rows: int, repeats: int) -> dict[str, float]:
    x_BTD = torch.randn(rows, TOKENS, WIDTH)
    shape = AttentionShape(WIDTH, HIDDEN, HEADS, 1, LABELS)

    def stacked(seeds: list[int]) -> Callable[[], object]:
        heads = AttentiveHeads(shape, seeds, dtype=torch.float32, device=torch.device("cpu"))
        return lambda: heads.logits(x_BTD).square().mean().backward()

    together, alone, plain = stacked(list(range(members))), stacked([0]), PlainHead()
    one, apart = seconds(alone, repeats), seconds(lambda: plain(x_BTD).square().mean().backward(), repeats)
    return {
        "members": members,
        "rows": rows,
        "together_s": seconds(together, repeats),
        "one_after_the_other_s": members * one,
        "multi_head_attention_s": members * apart,
    }


class ViewedTokens(TokenRows):
    """Tokens in memory; online means that the k-th read of a row sees its k-th view."""

    def __init__(self, tokens_VNTD: torch.Tensor, *, views: int, is_online: bool = False) -> None:
        self.tokens, self.views, self.is_online = tokens_VNTD, views, is_online
        self.file_ids, self.seen = [""] * tokens_VNTD.shape[1], np.zeros(tokens_VNTD.shape[1], np.int64)

    @property
    def num_views(self) -> int:
        return self.views

    @property
    def shape(self) -> tuple[int, int]:
        return self.tokens.shape[2], self.tokens.shape[3]

    def read(self, rows_B, views_B=None) -> torch.Tensor:
        if self.is_online:
            self.seen[rows_B] += 1
            return self.tokens[self.seen[rows_B], rows_B]
        return self.tokens[np.zeros_like(rows_B) if views_B is None else views_B, rows_B]


def draw_squares(count: int, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
    """Images (N, 3, 1, 32, 32) in bytes, and whether their square is green, not red."""
    images, is_green = rng.integers(0, 160, size=(count, 3, 1, 32, 32)), np.arange(count) % 2
    for image, channel in zip(images, is_green, strict=True):
        y, x = rng.integers(0, 24, size=2)
        image[channel, :, y : y + 8, x : x + 8] += 90
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8)), is_green.astype(np.int64)


def encode(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return encoder(finish_input(images, encoder.spec)).tokens_BND.clone()


def measure_views(cohorts: int) -> dict[str, float]:
    encoder = build_random_encoder(
        "timm", architecture={"model": "test_vit", "img_size": [32, 32]}, seed=1, modality="image"
    )
    shape, settings = AttentionShape(64, 64, 4, 1, 2), ProbeSettings(epochs=EPOCHS, batch_size=16, warmup_epochs=3)
    arms: dict[str, list[float]] = {}
    for cohort in range(cohorts):
        rng = np.random.default_rng(cohort)
        (train, y), (val, y_val), (test, y_test) = draw_squares(48, rng), draw_squares(100, rng), draw_squares(600, rng)

        looks = [train]
        for view in range(1, EPOCHS + 1):
            seeds = [stream_seed(cohort, view, row) for row in range(len(train))]
            looks.append(
                torch.stack([augment(one, AUGMENT, encoder.spec, seed) for one, seed in zip(train, seeds, strict=True)])
            )
        views = torch.stack([encode(encoder, images) for images in looks])
        known = {"none": ViewedTokens(views, views=0), "online": ViewedTokens(views, views=0, is_online=True)}
        known |= {f"{k} views": ViewedTokens(views, views=k) for k in (1, 2, 4, 8)}
        of_val, of_test = (ViewedTokens(encode(encoder, images)[None], views=0) for images in (val, test))

        def rows(y_N: np.ndarray, prefix: str, tokens: TokenRows) -> FeatureSet:
            names = np.array([f"{prefix}{n}" for n in range(len(y_N))])
            return FeatureSet(np.zeros((len(y_N), 1), np.float32), y_N, names, np.ones(len(y_N)), tokens=tokens)

        for name, tokens in known.items():
            [fitted] = fit_attentive_grid(
                rows(y, "t", tokens), rows(y_val, "v", of_val), [ProbeMember(1e-2, 0.05)], shape, settings
            )
            logits_NC = fitted.predict_logits(of_test)
            arms.setdefault(name, []).append(float(roc_auc_score(y_test, logits_NC[:, 1] - logits_NC[:, 0])))
    return {name: float(np.mean(values)) for name, values in arms.items()} | {
        f"{name} minus online": float(np.mean(values) - np.mean(arms["online"])) for name, values in arms.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    found = {
        "steps": measure_steps(*((4, 2, 2) if options.quick else (12, 8, 5))),
        "auroc": measure_views(1 if options.quick else 5),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
