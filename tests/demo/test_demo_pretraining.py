"""The masked-latent objective, and the checkpoints that ship with the package."""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vitreous.core.input_spec import InputSpec
from vitreous.core.progress import no_progress
from vitreous.demo import pretraining
from vitreous.demo.masked_latent import MaskedLatentModel, draw_masks, effective_rank, pick_tokens
from vitreous.demo.pretraining import PRETRAINED, PretrainingRecipe, build_model, draw_volume, train
from vitreous.demo.recipe import GENERATOR_VERSION

TINY = PretrainingRecipe(
    img_size=(8, 32, 32), patch_size=(4, 8, 8), width=24, depth=2, num_heads=2, predictor_width=16,
    predictor_depth=1, volumes=4, steps=30, batch_size=4, warmup_steps=2, learning_rate=3e-3,
)  # fmt: skip
CHECKPOINTS = Path(str(resources.files("vitreous.demo") / "checkpoints"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost such small matrices more than they save, above all beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_volumes() -> torch.Tensor:
    return torch.stack([draw_volume(i, "aurora", 5, InputSpec(size=TINY.img_size)) for i in range(4)])


def _batch(model: MaskedLatentModel, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return draw_masks(len(x), model.context_encoder.grid, 0.6, np.random.default_rng(0))


def test_loss_falls_and_the_same_recipe_gives_the_same_weights(tiny_volumes: torch.Tensor) -> None:
    weights = []
    for _ in range(2):
        model = build_model(TINY)
        loss = train(model, tiny_volumes, 1, TINY, no_progress)
        assert len(loss) == TINY.steps
        assert np.mean(loss[-5:]) < 0.8 * np.mean(loss[:5])
        weights.append(model.context_encoder.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_no_gradient_reaches_the_target_encoder(tiny_volumes: torch.Tensor) -> None:
    model = build_model(TINY)
    before = [p.clone() for p in model.target_encoder.parameters()]
    model.loss(tiny_volumes, tiny_volumes, *_batch(model, tiny_volumes)).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target_encoder.parameters())
    assert all(p.grad is not None for p in model.context_encoder.parameters())
    assert all(p.grad is not None for p in model.predictor.parameters())
    model.update_target(0.5)
    assert all(torch.equal(old, new) for old, new in zip(before, model.target_encoder.parameters()))


def test_target_is_the_moving_average_of_the_context_encoder() -> None:
    """Oracle: the closed form on one weight."""
    model = build_model(TINY)
    start = model.target_encoder.norm.weight.clone()
    with torch.no_grad():
        model.context_encoder.norm.weight.add_(1.0)
    model.update_target(0.9)
    torch.testing.assert_close(model.target_encoder.norm.weight, start + 0.1)


def test_hidden_tokens_do_not_reach_the_context_encoder(tiny_volumes: torch.Tensor) -> None:
    """Changing the voxels of a hidden token changes the target, not the prediction."""
    model = build_model(TINY).eval()
    visible, hidden = _batch(model, tiny_volumes)
    d, h, w = (int(i) for i in np.unravel_index(int(hidden[0, 0]), model.context_encoder.grid))
    changed = tiny_volumes.clone()
    changed[0, :, 4 * d : 4 * d + 4, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8] += 3.0

    def predict(x: torch.Tensor) -> torch.Tensor:
        latents = model.context_encoder.encode(pick_tokens(model.context_encoder.embed(x), visible))
        return model.predictor(latents, visible, hidden)

    assert torch.equal(predict(tiny_volumes), predict(changed))
    assert not torch.equal(model.target_encoder(tiny_volumes), model.target_encoder(changed))


def test_masks_hide_the_exact_share_and_every_token_once() -> None:
    visible, hidden = draw_masks(8, (4, 6, 6), 0.7, np.random.default_rng(0))
    assert hidden.shape == (8, round(0.7 * 144))
    for row in torch.cat([visible, hidden], dim=1):
        assert torch.equal(row.sort().values, torch.arange(144))
    assert not torch.equal(hidden[0], hidden[1])


def test_effective_rank_tells_collapse_from_spread() -> None:
    """Oracle: closed forms: rank one gives 1, equal singular values give their number."""
    line = torch.outer(torch.linspace(-1, 1, 20), torch.ones(8))
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    square = torch.cat([torch.eye(8), -torch.eye(8)])
    assert effective_rank(square) == pytest.approx(8, abs=1e-3)


def test_pretraining_volumes_are_drawn_from_streams_of_their_own() -> None:
    spec = InputSpec(size=(8, 32, 32))
    first = draw_volume(0, "cirro", 0, spec)
    assert torch.equal(first, draw_volume(0, "cirro", 0, spec))
    assert not torch.equal(first, draw_volume(1, "cirro", 0, spec))
    assert float(first.mean()) == pytest.approx(0, abs=1e-4)
    assert float(first.std()) == pytest.approx(1, abs=1e-2)


def test_command_line_writes_checkpoint_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "PretrainingRecipe", lambda: TINY)
    threads = torch.get_num_threads()
    try:
        pretraining.main(["--out", str(tmp_path), "--only", "scanner_2", "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "pretraining.json").read_text())["checkpoints"]
    assert list(record) == ["scanner_2"]
    assert record["scanner_2"]["scanners"] == ["borealis"]
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["scanner_2.safetensors"]
    with pytest.raises(SystemExit):
        pretraining.main(["--out", str(tmp_path), "--only", "scanner_9"])


@pytest.mark.parametrize("name", list(PRETRAINED))
def test_shipped_checkpoints_load_and_are_far_from_random(name: str) -> None:
    """Oracle: the encoders room's strict load; a random encoder of the same architecture."""
    from vitreous.encoders.catalog import load_encoder

    path = CHECKPOINTS / f"{name}.safetensors"
    assert path.stat().st_size <= 5_000_000
    encoder = load_encoder(path, "vit3d")
    recipe = PretrainingRecipe()
    assert encoder.spec.size == recipe.img_size
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        training = json.loads(file.metadata()["training"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert config == {"image_size": [16, 96, 96], "patch_size": [4, 16, 16], "num_heads": recipe.num_heads}
    assert training["scanners"] == list(PRETRAINED[name])
    start = build_model(recipe).context_encoder.state_dict()
    assert start.keys() == tensors.keys()
    moved = {key: float((tensors[key] - start[key]).norm() / tensors[key].norm()) for key in start}
    assert all(value > 0.05 for key, value in moved.items() if key.endswith(("qkv.weight", "fc1.weight")))


def test_pretraining_record_shows_a_falling_loss_and_no_collapse() -> None:
    record = json.loads((CHECKPOINTS / "pretraining.json").read_text())["checkpoints"]
    assert record.keys() == PRETRAINED.keys()
    for facts in record.values():
        assert facts["generator_version"] == GENERATOR_VERSION
        assert np.mean(facts["loss"][-20:]) < np.mean(facts["loss"][:20])
        assert facts["feature_rank"] > 4
        assert facts["feature_std"] > 0.02
