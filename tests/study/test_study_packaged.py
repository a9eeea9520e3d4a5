"""Packaged studies on data and weights made on the spot: their headers, their plans, and one of them end to end."""

import re
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vitreous.config.compose import load_study, packaged_studies
from vitreous.config.pixel_recipes import PixelRecipe
from vitreous.config.study import EncoderConfig, StudyConfig
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.demo.cohort import write_cohort
from vitreous.demo.fundus_cohort import IMAGES, write_fundus_cohort
from vitreous.demo.recipe import CohortRecipe
from vitreous.demo.surgical_cohort import write_surgical_cohort
from vitreous.encoders.catalog import build_random_encoder
from vitreous.study.plan import make_plan
from vitreous.study.run import run_study

declare_torchvision_schemas()
import timm  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

WIDTH, DEPTH, CLASSES = 64, 3, 5


class Weights:
    """Files in the layouts that the packaged studies load; each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, encoder: EncoderConfig) -> list[str]:
        """What takes the place of the encoder's weights: overrides below its name."""
        match encoder.family:
            case "retfound":
                return [f"checkpoint={self.retfound()}"]
            case "timm":
                model = "resnet10t" if "res" in str(encoder.hub) else "vit_tiny_patch16_224"
                return [f"checkpoint={self.timm(model)}", f"options.model={model}", "input.size=[64,64]"]
            case "litemedsam":
                return [f"checkpoint={self.litemedsam()}"]
            case "vit3d":
                return [f"checkpoint={resources.files('vitreous.demo') / 'checkpoints' / 'scanner_1.safetensors'}"]
            case "vjepa2":
                return [
                    f"checkpoint={resources.files('vitreous.demo') / 'checkpoints' / 'surgical_vjepa2.safetensors'}"
                ]
        raise AssertionError(f"no weights for family {encoder.family}")

    def retfound(self) -> Path:
        """A small masked autoencoder as RETFound's code saves it, decoder included."""
        torch.manual_seed(0)
        encoder = VisionTransformer(
            img_size=32,
            patch_size=16,
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=1,
            num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        decoder = {"mask_token": torch.zeros(1, 1, 32), "decoder_pos_embed": torch.zeros(1, 5, 32)}
        return self._save("retfound", {"model": encoder.state_dict() | decoder, "epoch": 799})

    def timm(self, model: str) -> Path:
        """Random weights of a model of timm, classifier included."""
        return self._save(model, timm.create_model(model, pretrained=False).state_dict())

    def litemedsam(self) -> Path:
        """Random weights of the image encoder."""
        encoder = build_random_encoder("litemedsam", architecture={}, seed=0, trainable=True)
        return self._save("litemedsam", encoder.backbone.state_dict())

    def _save(self, name: str, payload: object) -> Path:
        path = self.folder / f"{name}.pth"
        if not path.exists():
            torch.save(payload, path)
        return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """kind of data → overrides that point to a small cohort."""
    root = tmp_path_factory.mktemp("cohorts")
    table = write_fundus_cohort(root / "fundus", num_patients=40, seed=0, camera="a", size_px=64)
    frames = write_surgical_cohort(root / "videos", num_videos=20, seed=0, frames_per_video=10, size_px=64)
    oct_files = write_cohort(root / "oct", CohortRecipe(participants=24, seed=0))
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_{name}": value
        for split in ("train", "val", "test")
        for name, value in (
            ("images", rng.integers(0, 255, size=(8, 6, 6, 6), dtype=np.uint8)),
            ("labels", np.arange(8)[:, None] % 2),
        )
    }
    np.savez(root / "volumes.npz", **arrays)
    return {
        "csv": [
            f"data.table={table}",
            f"data.files={table.parent / IMAGES}",
            "data.image=id_code",
            "data.label=diagnosis",
        ],
        "participants": [
            f"data.table={oct_files.participants}",
            f"data.files={oct_files.root}",
            f"data.manifest={oct_files.manifest}",
        ],
        "npz": [f"data.table={root / 'volumes.npz'}"],
        "frames": [
            f"data.table={frames}",
            f"data.files={frames.parent / 'frames'}",
            *(f"data.split.{split}={frames.parent / f'{split}_vids.txt'}" for split in ("train", "val", "test")),
        ],
    }


def here(name: str, cohorts: dict[str, list[str]], weights: Weights, tmp_path: Path) -> list[str]:
    """Overrides with which a packaged study runs here."""
    study = load_study(name)
    overrides = [*cohorts[study.data.kind], f"runs={tmp_path / 'runs'}", f"store={tmp_path / 'features'}"]
    overrides += [f"cache.dir={tmp_path / 'files'}", "device=cpu", "precision=fp32"]
    if getattr(study.data, "masks", None) is not None:
        table = next(one.partition("=")[2] for one in overrides if one.startswith("data.table="))
        overrides.append(f"data.masks.files={Path(table).parent / 'masks'}")
    for label, encoder in study.encoders.items():
        if encoder.random is not None:
            continue
        overrides += [f"~encoders.{label}.hub"] if encoder.hub else []
        overrides += [] if encoder.random else [f"encoders.{label}.{given}" for given in weights.of(encoder)]
    return overrides


@pytest.mark.parametrize("name", packaged_studies())
def test_the_header_says_how_to_run_it_and_what_to_expect(name: str) -> None:
    text = (resources.files("vitreous.studies") / f"{name}.yaml").read_text(encoding="utf-8")
    head = text[: text.index("\nname:")]
    assert all(line.startswith("#") for line in head.splitlines()), "the header stands above the study"
    assert max(map(len, text.splitlines())) <= 125
    parts = re.findall(r"^# (command|hardware|minutes|expected) {2,}\S", head, flags=re.MULTILINE)
    assert parts == ["command", "hardware", "minutes", "expected"]
    assert f"{name}\n" in text[text.index("\nname:") :], "it has the name of its file"
    assert re.search(rf"vitreous (run|plan|search) {name}\b", head) or name == "demo"


@pytest.mark.parametrize("name", packaged_studies())
def test_its_plan_counts_what_would_be_done(
    name: str, cohorts: dict[str, list[str]], weights: Weights, tmp_path: Path
) -> None:
    study = load_study(name, here(name, cohorts, weights, tmp_path))
    plan = make_plan(study)
    assert set(study.encoders) <= {encoder.name for encoder in plan.encoders} | {row.encoder for row in plan.on_pixels}
    on_pixels = [recipe for recipe in study.recipes.values() if isinstance(recipe, PixelRecipe)]
    assert len(plan.on_pixels) == len(on_pixels) * len(study.encoders)
    assert all(0 < row.trainable <= row.total for row in plan.on_pixels)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "features").exists()


@pytest.mark.slow
def test_retfound_with_lora_end_to_end(cohorts: dict[str, list[str]], weights: Weights, tmp_path: Path) -> None:
    overrides = here("dr_retfound_lora", cohorts, weights, tmp_path)
    overrides += ["seeds=[0]", "intervals.resamples=200", "recipes.linear.epochs=3"]
    overrides += [f"recipes.{name}.epochs=1" for name in ("lora", "last_blocks", "full")]
    study: StudyConfig = load_study("dr_retfound_lora", overrides)
    result = run_study(study)
    board = result.leaderboard.set_index(["encoder", "recipe"])
    trained = [("retfound", recipe) for recipe in ("linear", "lora", "last_blocks", "full")]
    floors = [("untrained", "linear"), *(("floor", name) for name in ("majority", "shuffled", "pixels"))]
    assert set(board.index) == {*trained, *floors}, "photographs without domains have no floor of columns"
    assert board["test_balanced_accuracy"].between(0, 1).all()
    head, adapters = WIDTH * CLASSES + CLASSES, DEPTH * 8 * (WIDTH + 3 * WIDTH)
    assert board.loc[("retfound", "lora"), "trainable_parameters"] == head + adapters
    assert (result.run_dir / "retfound" / "lora" / "seed0" / "adapter" / "adapter_model.safetensors").is_file()
    assert "retfound" in (result.run_dir / "report.html").read_text(encoding="utf-8")
