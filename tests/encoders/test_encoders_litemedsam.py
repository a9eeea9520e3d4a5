"""LiteMedSAM's TinyViT slice by slice; oracle: timm's TinyViT blocks with the same weights."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitreous.core.errors import CheckpointError, ConfigError
from vitreous.core.streams import torch_stream
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.encoders.catalog import build_random_encoder, load_encoder
from vitreous.encoders.encoder import Encoder
from vitreous.encoders.slices import SliceTinyViT
from vitreous.encoders.tiny_vit import MBConv, PatchMerging, TinyViT, TinyViTShape, WindowBlock

declare_torchvision_schemas()
from timm.models import tiny_vit as timm_tiny_vit  # noqa: E402

TINY = TinyViTShape((16, 32, 32, 320), (1, 1, 1, 1), (2, 4, 4, 10), (7, 7, 14, 7))
SHARED = Path(os.environ.get("VITREOUS_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
PUBLISHED = SHARED / "weights/lite_medsam.pth"


def lively(module: nn.Module) -> nn.Module:
    """Every parameter and statistic away from 0 and 1."""
    generator = torch_stream(0, "weights")
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 + ("running_var" in name))
                if "running_var" in name:
                    tensor.abs_().add_(0.1)
    return module.eval()


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    renamed = {name.replace(".c.", ".conv."): tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(renamed, strict=True)
    theirs.eval()


@pytest.mark.parametrize("size", [7, 16, 14])
def test_window_block_equals_timm(size: int) -> None:
    ours, theirs = lively(WindowBlock(32, 4, 7)), timm_tiny_vit.TinyVitBlock(32, 4, 7)
    same_weights(ours, theirs)
    x_BCHW = torch.randn(2, 32, size, size, generator=torch_stream(1, "x"))
    with torch.inference_mode():
        expected = theirs(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert torch.allclose(ours(x_BCHW), expected, atol=1e-4, rtol=1e-4)


def test_convolutional_blocks_equal_timm() -> None:
    x_BCHW = torch.randn(2, 16, 12, 12, generator=torch_stream(1, "x"))
    pairs = [
        (MBConv(16), timm_tiny_vit.MBConv(16, 16, 4.0, nn.GELU, 0.0)),
        (PatchMerging(16, 24), timm_tiny_vit.PatchMerging(16, 24, nn.GELU)),
    ]
    for ours, theirs in pairs:
        same_weights(lively(ours), theirs)
        with torch.inference_mode():
            assert torch.allclose(ours(x_BCHW), theirs(x_BCHW.clone()), atol=1e-4, rtol=1e-4)


def test_the_merge_to_the_last_stage_keeps_its_resolution() -> None:
    assert PatchMerging(8, 160).conv2.c.stride == (2, 2)
    assert PatchMerging(8, 320).conv2.c.stride == (1, 1)
    with torch.inference_mode():
        assert TinyViT(TINY).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 256, 16, 16)


def slice_encoder(  # of small slices below: only `grid_of` insists on 256×256
    normalise_slices: bool = True,
) -> SliceTinyViT:
    model = SliceTinyViT(TINY, (4, 2), normalise_slices)
    model.init_weights(torch_stream(0, "weights"))
    return model.eval()


def test_tokens_are_means_of_each_slice_by_itself() -> None:
    model = slice_encoder()
    x_BCDHW = torch.rand(2, 1, 3, 64, 64, generator=torch_stream(1, "x")).expand(-1, 3, -1, -1, -1)
    with torch.inference_mode():
        tokens_BNE = model(x_BCDHW)
        one_CHW = x_BCDHW[1, :, 2]
        one_CHW = (one_CHW - one_CHW.min()) / (one_CHW.max() - one_CHW.min())
        map_EHW = TinyViT.forward(model, one_CHW[None])[0]
    assert tokens_BNE.shape == (2, 3 * 4 * 2, 256)
    expected = map_EHW[:, 4:8, 8:16].mean((1, 2))  # cell (1, 1) of the grid 4×2 over 16×16
    assert torch.allclose(tokens_BNE[1, 2 * 8 + 1 * 2 + 1], expected, atol=1e-5)
    assert model.grid_of((3, 256, 256)) == (3, 4, 2)


def test_slices_are_normalised_by_themselves_unless_asked_not_to() -> None:
    x_BCDHW = torch.rand(1, 1, 1, 64, 64, generator=torch_stream(1, "x")).expand(-1, 3, -1, -1, -1)
    with torch.inference_mode():
        model, plain = slice_encoder(), slice_encoder(normalise_slices=False)
        assert torch.allclose(model(x_BCDHW), model(0.3 * x_BCDHW + 0.1), atol=1e-4)
        assert not torch.allclose(plain(x_BCDHW), plain(0.3 * x_BCDHW + 0.1), atol=1e-2)
        assert bool(torch.isfinite(model(torch.zeros_like(x_BCDHW))).all())  # an empty slice


def test_folding_norms_and_bfloat16_keep_the_tokens() -> None:
    model = slice_encoder()
    for name, tensor in model.state_dict().items():
        if "running_mean" in name:
            tensor.add_(0.1)
        if "running_var" in name:
            tensor.mul_(1.7)
    x_BCDHW = torch.rand(1, 3, 1, 64, 64, generator=torch_stream(1, "x"))
    with torch.inference_mode():
        expected = model(x_BCDHW)
        model.set_precision(torch.float32)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert torch.allclose(model(x_BCDHW), expected, atol=1e-4)
        model.set_precision(torch.bfloat16)
        assert F.cosine_similarity(model(x_BCDHW), expected, dim=-1).min() > 0.99


def test_random_encoder_with_options() -> None:
    encoder = build_random_encoder("litemedsam", architecture={"num_slices": 2}, seed=3, token_grid=[2, 2])
    assert encoder.spec.size == (2, 256, 256)
    assert (encoder.grid, encoder.width, encoder.spec.channels) == ((2, 2, 2), 256, 3)
    assert encoder.receipt.parameters == 5_726_740
    with pytest.raises(ConfigError, match=r"token_grid must divide the 64×64 map of a slice; got \(3, 3\)"):
        build_random_encoder("litemedsam", architecture={"token_grid": [3, 3]}, seed=3)
    with pytest.raises(ConfigError, match=r"token_grid must divide the 21×16 map of a slice; got \(8, 8\)"):
        build_random_encoder("litemedsam", architecture={}, seed=3, spec_override={"size": [8, 84, 64]})


def test_another_file_is_refused(tmp_path: Path) -> None:
    torch.save({"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "mobile_sam.pt")
    with pytest.raises(CheckpointError, match="0 of 298 encoder tensors matched"):
        load_encoder(tmp_path / "mobile_sam.pt", "litemedsam")


@pytest.mark.real
@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"no real weights at {PUBLISHED}")
class TestPublishedWeights:
    def load(self, **options: Any) -> Encoder:
        return load_encoder(PUBLISHED, "litemedsam", num_slices=1, **options)

    def test_receipt_is_complete(self) -> None:
        receipt = self.load().receipt
        assert (receipt.tensors_matched, receipt.tensors_total, receipt.matched_share) == (298, 298, 1.0)
        assert receipt.key_prefix == "image_encoder."
        assert {rule: len(names) for rule, names in receipt.ignored_by_rule.items()} == {
            "mask decoder": 120,
            "prompt encoder": 17,
        }
        assert min(receipt.distance_from_random.values()) > 0.1

    def test_features_follow_the_image_and_bfloat16_is_near(self) -> None:
        x_BCDHW = torch.zeros(1, 3, 1, 256, 256)
        x_BCDHW[..., 64:192, 64:128] = 1.0
        encoder = self.load(token_grid=[64, 64])
        tokens_BNE = encoder(x_BCDHW).tokens_BND
        map_HWE = tokens_BNE[0].view(64, 64, 256)
        inside, outside = map_HWE[24:40, 20:28].flatten(0, 1), map_HWE[:8, 40:].flatten(0, 1)
        across = F.cosine_similarity(inside.mean(0), outside.mean(0), dim=0)
        within = F.cosine_similarity(inside, inside.mean(0), dim=-1).mean()
        assert within > across + 0.2
        half = self.load(precision="bf16")(x_BCDHW).tokens_BND
        full = self.load()(x_BCDHW).tokens_BND
        assert F.cosine_similarity(half, full, dim=-1).min() > 0.99
