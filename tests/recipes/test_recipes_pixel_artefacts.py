"""What is kept of a trained pixel model, and that it comes back bit by bit.

Oracles: the trained model itself, PEFT's own loader, safetensors' own reader.
"""

import json
import os

import pytest
import torch
from pixel_models import DEPTH, ENCODERS, VIT3D, adapt, build, fill, images, train_steps, vit_encoder
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vitreous.core.errors import CheckpointError
from vitreous.encoders.catalog import build_random_encoder
from vitreous.recipes.lora import adapter_tensors, merge_adapters
from vitreous.recipes.pixel_artefacts import (
    build_pixel_model,
    pixel_model_config,
    restore_pixel_model,
    save_pixel_model,
)
from vitreous.recipes.trainable import set_trainable

HEAD = {"head.output.weight", "head.output.bias"}


def rebuild(model, folder, encoder="vit"):
    config = json.loads(json.dumps(pixel_model_config(model)))  # as model.json holds it
    again = build_pixel_model(config, ENCODERS[encoder]())
    restore_pixel_model(again, folder)
    return again


@pytest.mark.parametrize("encoder", ["vit", "conv"])
@pytest.mark.parametrize("unfreeze", [0, 1, 2, "all"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_trained_model_comes_back_to_bit_equal_outputs(tmp_path, encoder, unfreeze, head):
    model = build(encoder, head=head, dropout=0.1)
    set_trainable(model, unfreeze)
    train_steps(model, encoder)
    model.eval()
    save_pixel_model(model, tmp_path)
    again = rebuild(model, tmp_path, encoder)
    assert torch.equal(again(images(encoder)), model(images(encoder)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


@pytest.mark.parametrize(("unfreeze", "kept"), [(0, set()), (1, {DEPTH, DEPTH + 1}), ("all", set(range(DEPTH + 2)))])
def test_only_what_training_changed_is_kept(tmp_path, unfreeze, kept):
    model = build("vit")
    set_trainable(model, unfreeze)
    train_steps(model)
    save_pixel_model(model, tmp_path)
    names = set(load_file(tmp_path / "best.safetensors"))
    state = model.encoder.backbone.state_dict()
    assert names == HEAD | {f"encoder.{n}" for n in state if model.backbone.depth_of(n) in kept}


def test_stages_keep_the_union_and_statistics_of_batch_norms(tmp_path):
    model = build("conv")
    for unfreeze in (2, 0):  # what the second stage froze again has moved in the first
        set_trainable(model, unfreeze)
        train_steps(model, "conv")
    save_pixel_model(model, tmp_path)
    names = set(load_file(tmp_path / "best.safetensors"))
    assert {f"encoder.blocks.{i}.bn.running_var" for i in (1, 2)} <= names
    assert "encoder.blocks.2.bn.num_batches_tracked" in names
    assert not [name for name in names if "blocks.0" in name or "stem" in name]
    again = rebuild(model, tmp_path, "conv")
    assert torch.equal(again(images("conv")), model.eval()(images("conv")))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_come_back_to_bit_equal_outputs(tmp_path, dora, rslora):
    model = adapt(build(), targets=("qkv", "mlp"), layers=(0, 2), dropout=0.1, dora=dora, rslora=rslora)
    train_steps(model)
    model.eval()
    save_pixel_model(model, tmp_path)
    assert set(load_file(tmp_path / "best.safetensors")) == HEAD
    again = rebuild(model, tmp_path)
    assert torch.equal(again(images()), model(images()))
    assert again.adapters == model.adapters


@pytest.mark.parametrize(("encoder", "targets"), [("vit", ("qkv", "proj")), ("conv", ("conv",))])
@pytest.mark.parametrize("dora", [False, True])
def test_peft_itself_reads_the_adapters(tmp_path, encoder, targets, dora):
    import peft

    model = fill(adapt(build(encoder), targets=targets, layers=(0, 2), dora=dora, rslora=True)).eval()
    save_pixel_model(model, tmp_path)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    fresh = ENCODERS[encoder]().backbone.eval()
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    expected_BND = model.encoder.backbone(images(encoder))
    assert torch.equal(loaded(images(encoder)), expected_BND)
    assert not torch.equal(ENCODERS[encoder]().backbone.eval()(images(encoder)), expected_BND)


def test_adapters_of_a_held_model_are_saved_under_its_own_names(tmp_path):
    """A backbone that only holds another library's model: the file fits that model without the holder."""
    import peft

    class Holder(torch.nn.Module):
        width, num_blocks, num_prefix_tokens = 12, DEPTH, 0

        def __init__(self, model):
            super().__init__()
            self.model = model
            self.embed, self.run_blocks, self.finish = model.embed, model.run_blocks, model.finish

        def depth_of(self, name):
            return self.model.depth_of(name.removeprefix("model."))

        def forward(self, x_BCDHW):
            return self.model(x_BCDHW)

    model = build()
    model.encoder.backbone = Holder(model.encoder.backbone)
    fill(adapt(model)).eval()
    assert {name.split(".")[2] for name in adapter_tensors(model)} == {"blocks"}
    model.loaded_digests = {f"model.{name}": digest for name, digest in model.loaded_digests.items()}
    save_pixel_model(model, tmp_path)
    assert set(load_file(tmp_path / "best.safetensors")) == HEAD
    loaded = peft.PeftModel.from_pretrained(vit_encoder().backbone.eval(), tmp_path / "adapter").eval()
    assert torch.equal(loaded(images()), model.encoder.backbone(images()))
    expected_BC = model(images())
    merge_adapters(model)
    torch.testing.assert_close(model(images()), expected_BC, rtol=0, atol=2e-6)


def test_a_merged_model_is_kept_as_changed_matrices(tmp_path):
    model = fill(adapt(build()))
    save_pixel_model(model, tmp_path)
    merge_adapters(model)
    save_pixel_model(model, tmp_path)  # over the unmerged one
    names = set(load_file(tmp_path / "best.safetensors"))
    assert names == HEAD | {f"encoder.blocks.{i}.attn.qkv.weight" for i in range(DEPTH)}
    again = rebuild(model, tmp_path)
    assert torch.equal(again(images()), model.eval()(images()))


def test_files_name_no_path_and_are_the_same_each_time(tmp_path):
    model = fill(adapt(build()))
    contents = []
    for name in ("one", "two"):
        save_pixel_model(model, tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()})
    assert contents[0] == contents[1]
    text = contents[0]["adapter_config.json"].decode()
    for part in (str(tmp_path), os.getcwd(), os.path.expanduser("~"), torch.__path__[0]):
        assert part not in text
    assert json.loads(text)["base_model_name_or_path"] is None


def saved(tmp_path, model=None):
    model = build() if model is None else model
    train_steps(model)
    save_pixel_model(model, tmp_path)
    return model


def test_changes_to_another_encoder_are_refused(tmp_path):
    model = build()
    set_trainable(model, 1)
    saved(tmp_path, model)
    other = build_random_encoder("vit3d", architecture=VIT3D, seed=2, trainable=True)
    with pytest.raises(CheckpointError, match=r"holds changes to the vit3d encoder .*Give the encoder"):
        restore_pixel_model(build_pixel_model(pixel_model_config(model), other), tmp_path)


def test_a_whole_encoder_needs_no_particular_one_to_start_from(tmp_path):
    model = build()
    set_trainable(model, "all")
    saved(tmp_path, model)
    other = build_pixel_model(
        pixel_model_config(model), build_random_encoder("vit3d", architecture=VIT3D, seed=2, trainable=True)
    )
    restore_pixel_model(other, tmp_path)
    assert torch.equal(other(images()), model.eval()(images()))


def rewrite(path, change):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.output.bias"), r"best\.safetensors: head\.output\.bias is missing"),
        (lambda t: t.pop("encoder.pos_embed"), r"encoder\.pos_embed is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "more has no place in the model"),
        (
            lambda t: t.update({"head.output.bias": torch.zeros(5)}),
            r"head\.output\.bias is \(5,\) float32, the model's \(4,\) float32",
        ),
        (lambda t: t.update({"head.output.bias": torch.zeros(4).half()}), r"is \(4,\) float16"),
    ],
)
def test_incomplete_or_foreign_weights_are_refused_by_name_and_nothing_changes(tmp_path, change, message):
    model = build()
    set_trainable(model, "all")
    saved(tmp_path, model)
    rewrite(tmp_path / "best.safetensors", change)
    fresh = build()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        restore_pixel_model(fresh, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())


def test_missing_damaged_or_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"best\.safetensors: the weights do not exist"):
        restore_pixel_model(build(), tmp_path)
    save_file({"head.output.bias": torch.zeros(4)}, tmp_path / "best.safetensors")
    with pytest.raises(CheckpointError, match="not written by a recipe that trains on pixels"):
        restore_pixel_model(build(), tmp_path)
    model = build()
    set_trainable(model, 0)
    saved(tmp_path, model)
    path = tmp_path / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"best\.safetensors: the file is damaged"):
        restore_pixel_model(build(), tmp_path)


def test_adapters_and_model_must_be_of_the_same_settings(tmp_path):
    model = saved(tmp_path, adapt(build()))
    with pytest.raises(CheckpointError, match="was saved with adapters, the model was built with none"):
        restore_pixel_model(build(), tmp_path)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: lora_alpha is 6\.0, the model has 8\.0"):
        restore_pixel_model(adapt(build(), alpha=8.0), tmp_path)
    with pytest.raises(CheckpointError, match=r"target_modules is .*blocks\\\\\.2.*Build the model"):
        restore_pixel_model(adapt(build(), layers=(0,)), tmp_path)
    rewrite(
        tmp_path / "adapter" / "adapter_model.safetensors",
        lambda t: t.pop("base_model.model.blocks.1.attn.qkv.lora_B.weight"),
    )
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.qkv\.lora_B\.weight is missing"):
        rebuild(model, tmp_path)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: the settings of the adapters do not exist"):
        rebuild(model, tmp_path)
