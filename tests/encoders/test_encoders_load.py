"""Loading `vit3d` checkpoints in every layout, and refusing whatever does not match completely."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from vitreous.core.errors import CheckpointError, ConfigError
from vitreous.core.fingerprints import hash_file
from vitreous.core.input_spec import InputSpec, PercentileMinMaxGamma, ZScore
from vitreous.core.streams import torch_stream
from vitreous.encoders.catalog import FAMILIES, build_random_encoder, load_encoder
from vitreous.encoders.vit3d import ViT3D
from vitreous.inputs.preprocessing import preprocess_volume
from vitreous.inputs.volume import Volume

SIZE, PATCH = [8, 32, 32], [4, 16, 16]
CONFIG: dict[str, Any] = {"image_size": SIZE, "patch_size": PATCH}
ARCHITECTURE = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 64, "depth": 2, "num_heads": 2}
Weights = dict[str, torch.Tensor]


def weights(seed: int = 0, width: int = 64) -> Weights:
    model = ViT3D((8, 32, 32), (4, 16, 16), embed_dim=width, depth=2, num_heads=2)
    model.init_weights(torch_stream(seed, "weights"))
    return model.state_dict()


def prefixed(tensors: Weights, prefix: str) -> Weights:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def full_checkpoint(config: Any = CONFIG, wrapper: str = "") -> dict[str, Any]:
    """The layout of the labs: both encoders, predictor, optimizer, config."""
    model = prefixed(weights(0), f"{wrapper}context_encoder.")
    model |= prefixed(weights(1), f"{wrapper}target_encoder.encoder.")
    model |= {f"{wrapper}predictor.embed.weight": torch.ones(3)}
    return {
        "epoch": 7,
        "step": 900,
        "model_state_dict": model,
        "loss": 0.25,
        "config": config,
        "scheduler_state_dict": {},
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
    }


def save(path: Path, payload: Any) -> Path:
    torch.save(payload, path)
    return path


def changed(tensors: Weights, edit: Callable[[Weights], Any]) -> Weights:
    copy = dict(tensors)
    edit(copy)
    return copy


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_labs_layout_with_an_omegaconf_config(tmp_path: Path, wrapper: str) -> None:
    config = OmegaConf.create(CONFIG | {"model": {"num_heads": 4}})
    path = save(tmp_path / "a.pt", full_checkpoint(config, wrapper))
    context, target = load_encoder(path, "vit3d"), load_encoder(path, "vit3d", which="target")
    for encoder, seed in ((context, 0), (target, 1)):
        expected = ViT3D((8, 32, 32), (4, 16, 16), embed_dim=64, depth=2, num_heads=4).eval()
        expected.load_state_dict(weights(seed))
        x_BCDHW = torch.randn(1, 1, 8, 32, 32, generator=torch_stream(0, "x"))
        tokens = encoder(x_BCDHW)
        assert tokens.grid == (2, 2, 2)
        assert torch.equal(tokens.tokens_BND, expected(x_BCDHW))
    receipt = context.receipt
    assert (receipt.which, receipt.key_prefix, target.receipt.key_prefix) == (
        "context",
        "context_encoder.",
        "target_encoder.encoder.",
    )
    assert receipt.tensors_matched == receipt.tensors_total == 29
    assert receipt.bytes_matched == receipt.bytes_total == sum(t.nbytes for t in weights().values())
    assert receipt.matched_share == 1.0
    assert set(receipt.ignored_by_rule) == {"predictor", "the other encoder (target)", "training state"}
    assert receipt.ignored_by_rule["training state"] == ("scheduler_state_dict", "optimizer_state_dict")
    assert len(receipt.ignored_by_rule["the other encoder (target)"]) == 29
    assert receipt.inferred["sources"] == {
        "img_size": "config.image_size",
        "num_heads": "config.model.num_heads",
        "eps": "rule: 1e-5 for this family",
    }
    assert receipt.file_sha256 == hash_file(path)
    assert receipt.facts == {"epoch": 7, "step": 900, "loss": 0.25}
    assert receipt.parameters == sum(t.numel() for t in weights().values())
    json.dumps(receipt.to_json(), allow_nan=False)


def test_equal_weights_have_equal_hashes_whatever_the_file(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "c.safetensors", metadata={"config": json.dumps(CONFIG)})
    wrapped = {"state_dict": prefixed(weights(), "module."), "config": CONFIG}
    encoders = [
        load_encoder(save(tmp_path / "a.pt", full_checkpoint()), "vit3d"),
        load_encoder(save(tmp_path / "b.pt", wrapped), "vit3d"),
        load_encoder(save(tmp_path / "d.pt", weights()), "vit3d", img_size=SIZE),
        load_encoder(tmp_path / "c.safetensors", "vit3d", precision="bf16"),
    ]
    assert len({encoder.weights_hash for encoder in encoders}) == 1
    assert encoders[0].weights_hash == encoders[0].receipt.weights_hash
    others = [
        load_encoder(save(tmp_path / "a.pt", full_checkpoint()), "vit3d", which="target"),
        load_encoder(tmp_path / "d.pt", "vit3d", img_size=SIZE, num_heads=4),  # the same weights, other features
    ]
    assert len({encoder.weights_hash for encoder in [encoders[0], *others]}) == 3


def test_the_default_input_is_the_one_of_pretraining(tmp_path: Path) -> None:
    encoder = load_encoder(save(tmp_path / "a.pt", full_checkpoint()), "vit3d")
    assert encoder.spec == InputSpec(size=(8, 32, 32), normalisation=ZScore())
    assert encoder.receipt.spec_override is None
    assert encoder.architecture == ARCHITECTURE | {
        "num_heads": 1,
        "in_chans": 1,
        "mlp_ratio": 4.0,
        "eps": 1e-5,
        "qkv_bias": True,
    }  # heads: width 64 / 64
    assert encoder.width == 64
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_wrong_normalisation_changes_features_and_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", full_checkpoint())
    right = load_encoder(path, "vit3d")
    wrong = load_encoder(path, "vit3d", spec_override={"normalisation": {"kind": "percentile-minmax-gamma"}})
    whole = load_encoder(path, "vit3d", spec=InputSpec(size=(8, 32, 32), normalisation=PercentileMinMaxGamma()))
    assert wrong.spec == whole.spec
    assert wrong.receipt.spec_override == right.receipt.spec == right.spec.model_dump(mode="json")
    assert wrong.receipt.spec["normalisation"]["kind"] == "percentile-minmax-gamma"
    voxels_DHW = np.random.default_rng(0).gamma(2.0, 50.0, (10, 40, 40)).astype(np.float32)
    volume = Volume(voxels_DHW, None, {})
    features = [one(preprocess_volume(volume, one.spec)[None]).tokens_BND.mean(1) for one in (right, wrong, whole)]
    assert torch.equal(features[1], features[2])
    assert (features[0] - features[1]).norm() / features[0].norm() > 0.05


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"normalisation": {"kind": "zcore"}}, "normalisation: .*zcore"),
        ({"sise": [8, 32, 32]}, "sise: Extra inputs"),
        ({"size": [8, 32, 16]}, r"learned positions are those of \(8, 32, 32\)"),
    ],
)
def test_an_input_that_does_not_exist_is_refused(tmp_path: Path, override: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "a.pt", full_checkpoint())
    with pytest.raises(ConfigError, match=message):
        load_encoder(path, "vit3d", spec_override=override)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("norm.bias"), "28 of 29 encoder tensors matched.*1 missing: norm.bias"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("blocks.0.")], "12 missing: .* and 2 more"),
        (lambda w: w.update(cls_token=torch.zeros(1)), "1 unexpected: cls_token"),
        (lambda w: w.update({"norm.bias": torch.zeros(65)}), r"1 of another shape: norm.bias: file \(65,\), encoder"),
        (lambda w: w["norm.bias"].__setitem__(3, math.nan), "1 tensors hold NaN or infinity: norm.bias"),
        (lambda w: w["pos_embed"].__setitem__((0, 0, 0), math.inf), "NaN or infinity: pos_embed"),
        (lambda w: w.pop("pos_embed"), "pos_embed is missing"),
        (lambda w: w.update({"patch_embed.proj.weight": torch.zeros(64, 1, 16, 16)}), "this is no 3D encoder"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("blocks.")], "no blocks.N found"),
    ],
)
def test_below_100_percent_the_load_is_refused(tmp_path: Path, edit: Callable[[Weights], Any], message: str) -> None:
    payload = {"state_dict": changed({n: t.clone() for n, t in weights().items()}, edit), "config": CONFIG}
    with pytest.raises(CheckpointError, match=message):
        load_encoder(save(tmp_path / "a.pt", payload), "vit3d")


def test_an_unknown_prefix_is_named_with_its_remedy(tmp_path: Path) -> None:
    tensors = prefixed(weights(), "backbone.") | {"head.weight": torch.ones(4, 64)}
    path = save(tmp_path / "a.pt", {"state_dict": tensors, "config": CONFIG})
    with pytest.raises(CheckpointError, match=r"Set key_prefix='backbone\.'"):
        load_encoder(path, "vit3d")
    receipt = load_encoder(path, "vit3d", key_prefix="backbone.").receipt
    assert receipt.ignored_by_rule == {"outside key_prefix 'backbone.'": ("head.weight",)}
    with pytest.raises(CheckpointError, match=r"Set key_prefix='backbone\.'"):
        load_encoder(path, "vit3d", key_prefix="backbon")


def test_a_head_beside_the_encoder_is_no_part_of_it(tmp_path: Path) -> None:
    tensors = prefixed(weights(), "context_encoder.") | {"head.weight": torch.ones(4, 64)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: head\.weight"):
        load_encoder(save(tmp_path / "a.pt", {"state_dict": tensors, "config": CONFIG}), "vit3d")


def test_another_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no name ends in patch_embed.proj.weight.*'fc' \(2\)"):
        load_encoder(save(tmp_path / "a.pt", {"fc.weight": torch.ones(2), "fc.bias": torch.ones(2)}), "vit3d")


def test_names_that_collide_without_their_wrapper(tmp_path: Path) -> None:
    tensors = weights() | prefixed({"norm.bias": torch.zeros(64)}, "module.")
    with pytest.raises(CheckpointError, match=r"norm\.bias stand in the file with and without"):
        load_encoder(save(tmp_path / "a.pt", {"state_dict": tensors, "config": CONFIG}), "vit3d")


def test_an_encoder_that_is_not_in_the_file(tmp_path: Path) -> None:
    bare = save(tmp_path / "bare.pt", {"state_dict": weights(), "config": CONFIG})
    with pytest.raises(CheckpointError, match="no target encoder of family vit3d found"):
        load_encoder(bare, "vit3d", which="target")
    only_target = {"state_dict": prefixed(weights(), "target_encoder."), "config": CONFIG}
    path = save(tmp_path / "target.pt", only_target)
    with pytest.raises(CheckpointError, match="no context encoder of family vit3d found"):
        load_encoder(path, "vit3d")
    assert load_encoder(path, "vit3d", which="target").receipt.which == "target"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"8 tokens, and nothing says how they lie.*Give the option img_size"),
        ({"image_size": [8, 32, 64]}, r"config.image_size is \[8, 32, 64\].*16 tokens; pos_embed has 8"),
        ({"image_size": [8, 32, 33]}, r"config.image_size is \[8, 32, 33\]"),
        ({"image_size": "64x384"}, "three whole numbers"),
        ({"image_size": SIZE, "model": {"img_size": [4, 32, 64]}}, r"stated differently: config.image_size is \[8, 32"),
        (CONFIG | {"patch_size": [2, 16, 16]}, r"config.patch_size is \[2, 16, 16\].*\[4, 16, 16\]"),
        (CONFIG | {"patch_size": 16}, r"config.patch_size is \[16, 16, 16\]"),
        (CONFIG | {"model": {"embed_dim": 128}}, "config.model.embed_dim is 128, but the tensors say 64"),
        (CONFIG | {"depth": 12}, "config.depth is 12, but the tensors say 2"),
        (CONFIG | {"num_heads": 4, "model": {"num_heads": 2}}, "config.num_heads is 4, config.model.num_heads is 2"),
        (CONFIG | {"num_heads": 5}, "5, which does not divide the width 64"),
    ],
)
def test_a_config_that_contradicts_the_tensors(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_encoder(save(tmp_path / "a.pt", {"state_dict": weights(), "config": config}), "vit3d")


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        {"img_size": SIZE},
        {"model": {"image_size": SIZE, "patch_size": PATCH}},
        CONFIG | {"patch_size": 16, "tubelet_size": 4},
        {"model": CONFIG | {"num_heads": 2, "embed_dim": 64, "depth": 2}},
    ],
)
def test_ways_to_state_the_size(tmp_path: Path, config: dict[str, Any]) -> None:
    encoder = load_encoder(save(tmp_path / "a.pt", {"state_dict": weights(), "config": config}), "vit3d")
    assert encoder.grid == (2, 2, 2)


def test_heads_without_config_follow_the_rule_or_are_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"state_dict": weights(width=128), "config": CONFIG})
    encoder = load_encoder(path, "vit3d")
    assert encoder.architecture["num_heads"] == 2
    assert encoder.receipt.inferred["sources"]["num_heads"] == "rule: head width 64"
    narrow = save(tmp_path / "b.pt", {"state_dict": weights(width=32), "config": CONFIG})
    with pytest.raises(CheckpointError, match=r"no multiple of the usual head width 64\. Give the option"):
        load_encoder(narrow, "vit3d")
    assert load_encoder(narrow, "vit3d", num_heads=4).receipt.inferred["sources"]["num_heads"] == "option num_heads"


def test_unknown_families_and_options(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", full_checkpoint())
    with pytest.raises(ConfigError, match="unknown encoder family 'vit'; known are vit3d, litemedsam, resnet3d"):
        load_encoder(path, "vit")
    with pytest.raises(ConfigError, match="family vit3d has no option num_slices; it has eps, img_size, num_heads"):
        load_encoder(path, "vit3d", num_slices=3)
    with pytest.raises(CheckpointError, match="family litemedsam has one encoder, and no target"):
        load_encoder(path, "litemedsam", which="target")


def test_the_encoder_refuses_an_input_of_another_shape(tmp_path: Path) -> None:
    encoder = load_encoder(save(tmp_path / "a.pt", full_checkpoint()), "vit3d")
    with pytest.raises(ValueError, match=r"takes volumes of shape \(B, 1, 8, 32, 32\); got \(1, 3, 8, 32, 32\)"):
        encoder(torch.zeros(1, 3, 8, 32, 32))


def test_bfloat16_gives_near_and_float32_tokens(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", full_checkpoint())
    x_BCDHW = torch.randn(1, 1, 8, 32, 32, generator=torch_stream(0, "x"))
    full, half = (load_encoder(path, "vit3d", precision=name)(x_BCDHW).tokens_BND for name in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert 0 < (full - half).norm() / full.norm() < 0.02


def test_random_encoders_follow_architecture_and_seed(tmp_path: Path) -> None:
    loaded = load_encoder(save(tmp_path / "a.pt", full_checkpoint()), "vit3d", img_size=SIZE)
    first, again, other = (
        build_random_encoder("vit3d", architecture=loaded.architecture, seed=seed, img_size=SIZE) for seed in (0, 0, 1)
    )
    assert first.weights_hash == again.weights_hash != other.weights_hash
    assert first.architecture == loaded.architecture
    assert first.spec == loaded.spec
    assert first.receipt.origin == "random, seed 0"
    assert (first.receipt.path, first.receipt.matched_share) == (None, 1.0)
    assert {p.shape for p in first.parameters()} == {p.shape for p in loaded.parameters()}


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        (ARCHITECTURE | {"widht": 3}, {}, "widht: Extra inputs"),
        ({"img_size": SIZE}, {}, "patch_size: Field required"),
        (ARCHITECTURE | {"depth": 0}, {}, "depth: Input should be greater than 0"),
        (ARCHITECTURE | {"num_heads": 5}, {}, "multiple of num_heads"),
        (ARCHITECTURE, {"num_heads": 4}, "disagree"),
    ],
)
def test_architectures_that_cannot_be_built(
    architecture: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_random_encoder("vit3d", architecture=architecture, seed=0, **options)


def test_distance_tells_trained_from_random_weights(tmp_path: Path) -> None:
    def distance(tensors: Weights) -> dict[str, float]:
        path = save(tmp_path / "a.pt", {"state_dict": tensors, "config": CONFIG})
        return load_encoder(path, "vit3d").receipt.distance_from_random

    fresh = distance(weights(seed=5))
    assert set(fresh) == {"patch_embed", "pos_embed", "blocks.0", "blocks.1", "norm"}
    assert max(fresh[layer] for layer in ("patch_embed", "blocks.0", "blocks.1", "norm")) < 0.05
    assert fresh["pos_embed"] < 0.2  # only 512 values
    trained = distance(changed(weights(seed=5), train_block_0))
    assert trained["blocks.0"] > 0.15
    assert trained["blocks.1"] == fresh["blocks.1"]


def train_block_0(tensors: Weights) -> None:
    """Some steps of Adam with learning rate 1e-3 on a linear target, for one block."""
    from vitreous.encoders.vit3d import TokenBlock

    block = TokenBlock(64, 2, qkv_bias=True)
    block.load_state_dict({n.removeprefix("blocks.0."): t.clone() for n, t in tensors.items() if "blocks.0." in n})
    generator = torch_stream(0, "training")
    x_BNE = torch.randn(16, 8, 64, generator=generator)
    target_BNE = x_BNE @ torch.randn(64, 64, generator=generator)
    optimizer = torch.optim.Adam(block.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        ((block(x_BNE) - target_BNE) ** 2).mean().backward()
        optimizer.step()
    tensors |= prefixed({name: tensor.detach() for name, tensor in block.state_dict().items()}, "blocks.0.")


def test_every_family_is_complete() -> None:
    for family in FAMILIES.values():
        assert set(family.prefixes) == set(family.rules)
        assert family.options <= set(family.architecture.model_fields)
