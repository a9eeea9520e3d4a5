"""Maps of small models. Oracles: the published formulas on whole N×N matrices, autograd, and Grad-CAM by hooks."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vitreous.core.errors import UserError
from vitreous.diagnosis.explain_maps import METHODS as ALL_METHODS
from vitreous.diagnosis.explain_maps import check_methods, explain, fitting_methods
from vitreous.diagnosis.explained_model import ExplainedModel, PooledHead
from vitreous.encoders.catalog import build_random_encoder
from vitreous.features.pooling import Pooling

METHODS = ALL_METHODS[1:]  # all but that of attentive probes
VIT3D = {"img_size": [4, 16, 16], "patch_size": [2, 8, 8], "embed_dim": 12, "depth": 3, "num_heads": 2}
RETFOUND = {"img_size": [32, 32], "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_registers": 2}
VJEPA2 = {
    "hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2, "crop_size": 32, "frames_per_clip": 4,
}  # fmt: skip
VIDEOMAE = {
    "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 32, "num_frames": 4,
    "intermediate_size": 32,
}  # fmt: skip
ENCODERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "vit3d": ("vit3d", VIT3D, "volume"),
    "retfound": ("retfound", RETFOUND, "image"),
    "vjepa2": ("vjepa2", VJEPA2, "clip"),
    "videomae": ("videomae", VIDEOMAE, "clip"),
    "frames": ("retfound", RETFOUND, "clip"),
    "resnet": ("timm", {"model": "test_resnet"}, "image"),
    "resnet3d": ("resnet3d", {"depths": [1, 1, 1, 1], "img_size": [32, 64, 64], "in_chans": 1}, "volume"),
}


def make_model(encoder: str, pooling: Pooling = "mean", classes: int = 3) -> tuple[ExplainedModel, torch.Tensor]:
    family, architecture, modality = ENCODERS[encoder]
    built = build_random_encoder(family, architecture=architecture, seed=1, modality=modality, trainable=True)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # wide weights: attention that is not even, logits that differ
        for parameter in built.parameters():
            if parameter.ndim > 1 and not encoder.startswith("resnet"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    head = nn.Linear(built.width, classes)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    names = tuple(f"class {index}" for index in range(classes))
    model = ExplainedModel(built, PooledHead(head, pooling, None), names).eval().requires_grad_(False)
    size = built.spec.size_DHW
    return model, torch.randn(1, built.spec.channels, *size, generator=torch.Generator().manual_seed(0))


@contextmanager
def plain_attention() -> Iterator[list[torch.Tensor]]:
    """The whole attention matrices (B, H, N, N) of every layer, with gradients."""
    kept: list[torch.Tensor] = []

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1)
        weights.retain_grad()
        kept.append(weights)
        return weights @ v

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.functional.scaled_dot_product_attention", plain)
        yield kept


def run_plainly(model: ExplainedModel, x: torch.Tensor, target: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Attention matrices and their gradients by the target's log-odds, first layer first."""
    with plain_attention() as kept:
        logits = model(x.clone().requires_grad_())[0]
        (logits[target] - torch.logsumexp(torch.cat([logits[:target], logits[target + 1 :]]), 0)).backward()
    return [one[0].detach() for one in kept], [one.grad[0] for one in kept if one.grad is not None]


@pytest.mark.parametrize(
    ("encoder", "pooling"),
    [("vit3d", "mean"), ("retfound", "cls"), ("retfound", "mean"), ("vjepa2", "mean"), ("videomae", "mean")],
)
def test_attention_maps_are_those_of_the_published_formulas(encoder: str, pooling: Pooling) -> None:
    model, x = make_model(encoder, pooling)
    weights, gradients = run_plainly(model, x, 1)
    num_tokens = weights[0].shape[-1]
    extra = num_tokens - math.prod(model.encoder.grid)
    start = torch.zeros(num_tokens)
    if pooling == "cls":
        start[0] = 1
    else:
        start[extra:] = 1 / (num_tokens - extra)
    eye = torch.eye(num_tokens)
    rollout, relevance = eye, eye
    for weight, gradient in zip(weights, gradients, strict=True):  # Abnar and Zuidema; Chefer et al., eqs. 5 and 6
        rollout = (0.5 * eye + 0.5 * weight.mean(0)) @ rollout
        relevance = relevance + (gradient * weight).clamp_min(0).mean(0) @ relevance
    expected = {
        "attention": start @ weights[-1].mean(0),
        "rollout": start @ rollout - 0.5 ** len(weights) * start,
        "grad_attention": start @ relevance - start,
    }
    found = explain(model, x, 1, METHODS)
    for method, map_P in expected.items():
        shown = map_P[extra:].reshape(model.encoder.grid).numpy()
        np.testing.assert_allclose(found[method], shown, rtol=2e-4, atol=1e-6, err_msg=method)
        assert found[method].std() > 0


def test_frames_that_are_encoded_by_themselves_are_explained_by_themselves() -> None:
    """Oracle: each frame alone, whose maps are those of the clip but for what the head makes of the other frames."""
    model, x = make_model("frames", "mean")
    assert model.encoder.grid == (x.shape[2], 4, 4)
    assert fitting_methods(model, x) == METHODS
    found = explain(model, x, 1, METHODS)
    image = build_random_encoder("retfound", architecture=RETFOUND, seed=1, modality="image", trainable=True)
    image.backbone.load_state_dict(model.encoder.backbone.image.state_dict())
    alone = ExplainedModel(image, model.read_out, model.classes).eval().requires_grad_(False)
    for frame in range(x.shape[2]):
        own = explain(alone, x[:, :, frame : frame + 1], 1, ["attention", "rollout"])
        for method, map_THW in own.items():
            np.testing.assert_allclose(found[method][frame] * x.shape[2], map_THW[0], rtol=1e-3, atol=1e-6)
    # the gradient of a clip's head by one frame's tokens, through autograd on the whole
    weights, gradients = run_plainly(model, x, 1)
    assert weights[0].shape[0] == 2
    assert found["grad_attention"].max() > 0
    assert len(gradients) == 2


def test_gradients_at_the_last_block_are_those_of_autograd_through_the_whole_model() -> None:
    model, x = make_model("vit3d")
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        inputs[0].retain_grad()
        kept.append(inputs[0])

    handle = model.encoder.backbone.blocks[-1].register_forward_pre_hook(keep)
    logits = model(x.clone().requires_grad_())
    (logits[0, 2] - torch.logsumexp(logits[0, :2], 0)).backward()
    handle.remove()
    tokens, gradient = kept[0].detach()[0], kept[0].grad[0]
    found = explain(model, x, 2, METHODS)
    expected = (tokens * gradient).sum(-1).clamp_min(0)
    np.testing.assert_allclose(found["token_gradients"].ravel(), expected, rtol=1e-4, atol=1e-7)
    expected = (tokens @ gradient.mean(0)).clamp_min(0)
    np.testing.assert_allclose(found["gradcam"].ravel(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("encoder", "layer"), [("resnet", "model.layer4.0"), ("resnet3d", "layer4.0")])
def test_grad_cam_of_a_network_without_tokens_is_that_of_its_last_map(encoder: str, layer: str) -> None:
    model, x = make_model(encoder)
    assert fitting_methods(model, x) == ("gradcam",)
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        out.retain_grad()
        kept.append(out)

    highest = []
    for target in range(3):
        handle = model.encoder.backbone.get_submodule(layer).register_forward_hook(keep)
        logits = model(x.clone().requires_grad_())[0]
        (logits[target] - torch.logsumexp(torch.cat([logits[:target], logits[target + 1 :]]), 0)).backward()
        handle.remove()
        map_E, gradient_E = kept[-1].detach()[0], kept[-1].grad[0]
        axes = tuple(range(1, map_E.ndim))
        cam = torch.einsum("e,e...->...", gradient_E.mean(axes), map_E).clamp_min(0)
        if encoder == "resnet3d":
            cam = cam.flip(1, 2).transpose(1, 2)  # the network sees RAS axes, the map is shown in those of the input
        found = explain(model, x, target, ["gradcam"])["gradcam"]
        np.testing.assert_allclose(found, cam.reshape(found.shape), rtol=1e-4, atol=1e-6)
        highest.append(found.max())
    assert max(highest) > 0


def test_classes_differ_and_class_free_maps_do_not() -> None:
    model, x = make_model("retfound", "cls")
    first, second = (explain(model, x, target, METHODS) for target in (0, 1))
    for method in METHODS:
        assert np.array_equal(first[method], second[method]) == (method in ("attention", "rollout")), method
        assert first[method].shape == (1, 4, 4)
        assert first[method].min() >= 0


def test_labels_that_stand_for_themselves_are_explained_by_their_own_logit() -> None:
    model, x = make_model("vit3d")
    alone = ExplainedModel(model.encoder, model.read_out, model.classes, "multi_label")
    logits = alone(x)
    assert torch.equal(alone.log_odds(logits, 1), logits[:, 1])
    torch.testing.assert_close(alone.probs(logits), logits.sigmoid())
    assert not np.array_equal(
        explain(alone, x, 1, ["token_gradients"])["token_gradients"],
        explain(model, x, 1, ["token_gradients"])["token_gradients"],
    )


def test_a_method_that_does_not_fit_is_refused() -> None:
    model, x = make_model("resnet")
    with pytest.raises(UserError, match=r"rollout cannot be had of this model with a timm encoder.*gradcam"):
        check_methods(["rollout", "gradcam"], fitting_methods(model, x), "timm")
    vit, volume = make_model("vit3d")
    assert fitting_methods(vit, volume) == METHODS
    check_methods(list(METHODS), METHODS, "vit3d")
