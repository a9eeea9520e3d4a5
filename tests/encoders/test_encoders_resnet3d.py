"""3D residual networks; oracle: the network written out on a volume in the orientation of its training."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitreous.core.errors import CheckpointError, ConfigError
from vitreous.core.input_spec import ClipRange
from vitreous.core.streams import torch_stream
from vitreous.encoders.catalog import build_random_encoder, load_encoder
from vitreous.encoders.family_resnet3d import RESNET3D, ResNet3DArchitecture
from vitreous.encoders.resnet3d import DEPTHS, ResNet3D, to_ras

DEPTH = (1, 2, 1, 1)
SIZE = (32, 64, 32)


def network() -> ResNet3D:
    model = ResNet3D(DEPTH)
    generator = torch_stream(0, "weights")
    model.init_weights(generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.0, generator=generator)
    return model.eval()


def written_out(w: dict[str, torch.Tensor], x_CXYZ: torch.Tensor) -> torch.Tensor:
    """The published chain: (x to right, y to anterior, z up) → z first → trunk; returns (z, x, y, width)."""

    def conv(x: torch.Tensor, name: str, norm: str, **options: Any) -> torch.Tensor:
        x = F.conv3d(x, w[f"{name}.weight"], **options)
        return F.batch_norm(x, *(w[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = x_CXYZ[None].permute(0, 1, 4, 2, 3)
    x = F.max_pool3d(conv(x, "conv1", "bn1", stride=(1, 2, 2), padding=(1, 3, 3)).relu(), 3, 2, 1)
    for layer, blocks in enumerate(DEPTH, start=1):
        for block in range(blocks):
            stride = 2 if layer > 1 and block == 0 else 1
            at = f"layer{layer}.{block}."
            shortcut = conv(x, f"{at}downsample.0", f"{at}downsample.1", stride=stride) if block == 0 else x
            out = conv(x, f"{at}conv1", f"{at}bn1").relu()
            out = conv(out, f"{at}conv2", f"{at}bn2", stride=stride, padding=1).relu()
            x = (conv(out, f"{at}conv3", f"{at}bn3") + shortcut).relu()
    return x[0].permute(1, 2, 3, 0)


def test_tokens_equal_the_written_out_network_in_its_orientation() -> None:
    model = network()
    x_BCDHW = torch.rand(1, 1, *SIZE, generator=torch_stream(1, "x")).expand(-1, 3, -1, -1, -1)
    # columns run to the left and rows to posterior; the network wants right and anterior
    x_CXYZ = x_BCDHW[0].permute(0, 3, 2, 1).flip(1, 2)
    with torch.inference_mode():
        map_ZXYE = written_out(model.state_dict(), x_CXYZ)
        expected_DHWE = map_ZXYE.flip(1, 2).permute(0, 2, 1, 3)
        tokens_BNE = model(x_BCDHW)
        assert model.grid_of(SIZE) == expected_DHWE.shape[:3] == (2, 2, 1)
        assert torch.allclose(tokens_BNE[0], expected_DHWE.flatten(0, 2), atol=1e-4, rtol=1e-4)
        model.set_precision(torch.float32)
        assert not any(isinstance(module, nn.BatchNorm3d) for module in model.modules())
        assert torch.allclose(model(x_BCDHW)[0], expected_DHWE.flatten(0, 2), atol=1e-4, rtol=1e-4)
        model.set_precision(torch.bfloat16)
        half = model(x_BCDHW)[0].float()
    assert F.cosine_similarity(half, expected_DHWE.flatten(0, 2), dim=-1).min() > 0.99


def test_turning_to_ras_and_back() -> None:
    x = torch.arange(24.0).view(1, 1, 1, 4, 6)
    assert to_ras(x).shape == (1, 1, 1, 6, 4)
    assert to_ras(x)[0, 0, 0, 0, 0] == x[0, 0, 0, -1, -1]  # first to the right and front: last column, last row
    assert torch.equal(to_ras(to_ras(x)), x)


def test_resnet152_has_the_published_size() -> None:
    with torch.device("meta"):
        model = ResNet3D(DEPTHS["resnet152"])
    assert sum(parameter.numel() for parameter in model.parameters()) == 117_366_208
    assert len(model.state_dict()) == 930
    assert model.grid_of((160, 224, 224)) == (10, 7, 7)


@pytest.mark.parametrize("prefix", ["", "visual_encoder.model.encode_image.i3_resnet.", "encode_image.i3_resnet."])
def test_bfloat16_files_load_completely(tmp_path: Path, prefix: str) -> None:
    tensors = {
        prefix + name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in network().state_dict().items()
    }
    heads = {f"{prefix}classifier.weight": torch.ones(2), "fc.bias": torch.ones(2)}
    torch.save({"state_dict": tensors | heads, "meta": {"licence": "MIT"}}, tmp_path / "a.pt")
    encoder = load_encoder(tmp_path / "a.pt", "resnet3d", img_size=SIZE)
    receipt = encoder.receipt
    assert receipt.matched_share == 1.0
    assert receipt.bytes_matched == sum(tensor.nbytes for tensor in tensors.values())
    assert receipt.ignored_by_rule == {"heads": tuple(sorted(heads)), "training state": ("meta",)}
    assert receipt.inferred["depths"] == list(DEPTH)
    assert receipt.key_prefix == prefix
    assert (encoder.width, encoder.grid) == (2048, (2, 2, 1))


def test_a_missing_layer_is_refused(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in network().state_dict().items() if not name.startswith("layer4.")}
    torch.save({"state_dict": tensors}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"missing: layer4\.0\.bn1\.bias"):
        load_encoder(tmp_path / "a.pt", "resnet3d")


def test_the_default_input_is_a_chest_window() -> None:
    spec = RESNET3D.default_specs["volume"](ResNet3DArchitecture())
    assert (spec.size, spec.channels, spec.normalisation) == ((160, 224, 224), 3, ClipRange(low=-1000, high=200))


def test_random_networks_and_bad_depths() -> None:
    architecture = {"depths": [1, 1, 1, 1], "img_size": [32, 32, 32]}
    first, again = (build_random_encoder("resnet3d", architecture=architecture, seed=0) for _ in range(2))
    assert first.weights_hash == again.weights_hash
    assert torch.isfinite(first(torch.rand(1, 3, 32, 32, 32)).tokens_BND).all()
    with pytest.raises(ConfigError, match="depths"):
        build_random_encoder("resnet3d", architecture={"depths": [3, 4, 6]}, seed=0)
