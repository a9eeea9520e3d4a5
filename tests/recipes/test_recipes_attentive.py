"""Attentive probes on kept tokens.

Oracles: torch.nn.MultiheadAttention (one block), transformers' VJEPA2AttentivePooler (blocks), each member trained
alone, an encoder that runs anew for every batch, torch's autograd through both forms.
"""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitreous.core.label_sets import encode_label_sets
from vitreous.encoders.catalog import build_random_encoder
from vitreous.features.store import FeatureSpace
from vitreous.features.token_store import EncodedTokens, TokenRows, TokenSpace, TokenStore, View
from vitreous.recipes.attentive_heads import (
    AttentionShape,
    AttentiveHeads,
    attention_maps,
    attentive_logits,
    draw_parameters,
    read_shape,
)
from vitreous.recipes.attentive_probe import (
    fit_attentive_grid,
    member_bytes,
    split_members,
    token_attention,
    token_logits,
)
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.grid_losses import LossSettings
from vitreous.recipes.probe_grid import ProbeMember, ProbeSettings

ENCODER = build_random_encoder(
    "vit3d",
    architecture={"img_size": [4, 16, 16], "patch_size": [2, 8, 8], "embed_dim": 16, "depth": 1, "num_heads": 1},
    seed=0,
)
T, D = 6, 8


def space(dtype: str = "fp32", view: View | None = None) -> TokenSpace:
    vectors = FeatureSpace(ENCODER.weights_hash, {}, ENCODER.spec, "mean", None, "fp32", dtype, {}, {})
    return TokenSpace(vectors, None, view)


def keep(root: Path, tokens_NTD: np.ndarray, dtype: str = "fp32", view: View | None = None) -> TokenStore:
    store = TokenStore(root, space(dtype, view))
    rows = [EncodedTokens(f"f{n}", one.astype(np.float32)) for n, one in enumerate(tokens_NTD)]
    for start in range(0, len(rows), 4):
        store.write_shard(rows[start : start + 4])
    return store


def labelled(root: Path, prefix: str, count: int, seed: int, task: str = "multi_label", dtype="fp32") -> FeatureSet:
    """One token of six carries the labels; the others are noise."""
    rng = np.random.default_rng(seed)
    has = rng.random((count, 3)) < 0.5
    has[0], has[1] = True, False
    tokens = rng.normal(size=(count, T, D))
    tokens[np.arange(count), rng.integers(T, size=count), :3] += 6.0 * has
    store = keep(root / prefix, tokens, dtype)
    y = encode_label_sets(has) if task == "multi_label" else has[:, 0].astype(np.int64) + has[:, 1]
    names = np.array([f"{prefix}{n:03d}" for n in range(count)])
    rows = TokenRows([store], [f"f{n}" for n in range(count)])
    return FeatureSet(np.zeros((count, 1), np.float32), y, names, np.ones(count), "mean_probability", task, rows)


def stacked(shape: AttentionShape, seeds: list[int]) -> dict[str, torch.Tensor]:
    drawn = [draw_parameters(shape, seed) for seed in seeds]
    rng = np.random.default_rng(0)
    return {
        name: torch.from_numpy(np.stack([one[name] + 0.1 * rng.normal(size=one[name].shape) for one in drawn]))
        for name in drawn[0]
    }


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("head_width", [None, 5])
def test_one_block_is_torchs_multi_head_attention(queries: int, head_width: int | None) -> None:
    shape = AttentionShape(D, 12, 4, queries, 3, head_width=head_width)
    parameters = {name: value.requires_grad_(True) for name, value in stacked(shape, [0, 1]).items()}
    x = torch.randn(5, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = attentive_logits(shape, parameters, x)
    maps = attention_maps(shape, parameters, x)
    theirs = []
    for k in range(2):
        p = {name: value[k] for name, value in parameters.items()}
        keys = F.layer_norm(x, (D,), p["norms.tokens.weight"], p["norms.tokens.bias"])
        zero = torch.zeros(12, dtype=torch.float64)
        out, weights = F.multi_head_attention_forward(
            p["attentive.query"][:, None].expand(-1, 5, -1), keys.transpose(0, 1), keys.transpose(0, 1), 12, 4,
            None, torch.cat([zero, zero, p["layers.value.bias"]]), None, None, False, 0.0, p["layers.out.weight"],
            p["layers.out.bias"], use_separate_proj_weight=True, q_proj_weight=torch.eye(12, dtype=torch.float64),
            k_proj_weight=p["layers.key.weight"], v_proj_weight=p["layers.value.weight"], average_attn_weights=False,
        )  # fmt: skip
        z = F.layer_norm(out.transpose(0, 1), (12,), p["norms.pooled.weight"], p["norms.pooled.bias"])
        if head_width:
            z = F.gelu(F.linear(z, p["layers.hidden.weight"], p["layers.hidden.bias"]))
        if queries == 1:
            theirs.append(F.linear(z[:, 0], p["layers.head.weight"], p["layers.head.bias"]).T)
        else:
            one = [z[:, c] @ p["layers.head.weight"][c] + p["layers.head.bias"][c] for c in range(3)]
            theirs.append(torch.stack(one))
        torch.testing.assert_close(maps[k], weights.transpose(1, 2), atol=1e-10, rtol=0)
    torch.testing.assert_close(ours, torch.stack(theirs), atol=1e-10, rtol=0)
    names = list(parameters)
    for ours_grad, theirs_grad, name in zip(
        torch.autograd.grad(ours.square().sum(), list(parameters.values()), retain_graph=True),
        torch.autograd.grad(torch.stack(theirs).square().sum(), list(parameters.values())),
        names,
        strict=True,
    ):
        torch.testing.assert_close(ours_grad, theirs_grad, atol=1e-9, rtol=1e-8, msg=name)


def test_blocks_are_transformers_attentive_pooler() -> None:
    from transformers import VJEPA2Config
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    config = VJEPA2Config(
        hidden_size=D, num_attention_heads=2, num_pooler_layers=2, mlp_ratio=4.0, layer_norm_eps=1e-5,
        attention_dropout=0.0, hidden_act="gelu",
    )  # fmt: skip
    config._attn_implementation = "eager"
    pooler = VJEPA2AttentivePooler(config).double()
    shape = AttentionShape(D, D, 2, 1, 3, blocks=3)
    parameters = stacked(shape, [0])
    p = {name: value[0] for name, value in parameters.items()}
    state = {"query_tokens": p["attentive.query"][None]}
    for place, name in [
        ("cross_attention_layer", "cross"),
        *((f"self_attention_layers.{i}", f"self{i}") for i in (0, 1)),
    ]:
        for part in ("weight", "bias"):
            for norm in ("1", "2"):
                state[f"{place}.layer_norm{norm}.{part}"] = p[f"norms.{name}.{norm}.{part}"]
            for fc in ("fc1", "fc2"):
                state[f"{place}.mlp.{fc}.{part}"] = p[f"layers.{name}.{fc}.{part}"]
            if name == "cross":
                state[f"{place}.cross_attn.q_proj.{part}"] = p[f"layers.cross.q.{part}"]
                for index, proj in enumerate(("k_proj", "v_proj")):
                    state[f"{place}.cross_attn.{proj}.{part}"] = p[f"layers.cross.kv.{part}"].chunk(2)[index]
            else:
                for index, proj in enumerate(("q_proj", "k_proj", "v_proj")):
                    state[f"{place}.self_attn.{proj}.{part}"] = p[f"layers.{name}.qkv.{part}"].chunk(3)[index]
                state[f"{place}.self_attn.out_proj.{part}"] = p[f"layers.{name}.proj.{part}"]
    pooler.load_state_dict(state)
    x = torch.randn(4, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.linear(pooler(x), p["layers.head.weight"], p["layers.head.bias"]).T
    # their softmax is in single precision
    torch.testing.assert_close(attentive_logits(shape, parameters, x)[0], expected, atol=1e-7, rtol=0)
    assert read_shape({**{n: v.numpy() for n, v in p.items()}, "attentive.heads": np.array([2])}) == shape


MEMBERS = [
    ProbeMember(1e-2, 0.0, 0.0, 0),
    ProbeMember(3e-2, 1e-2, 0.2, 1, "balanced"),
    ProbeMember(1e-2, 0.1, 0.1, 1),
]
SETTINGS = ProbeSettings(epochs=3, batch_size=8, warmup_epochs=1, patience=2)


@pytest.mark.parametrize(
    ("shape", "task"),
    [
        (AttentionShape(D, 8, 2, 1, 3), "multi_class"),
        (AttentionShape(D, 8, 2, 3, 3, head_width=4), "multi_label"),
        (AttentionShape(D, D, 2, 3, 3, blocks=2), "multi_label"),
    ],
    ids=["classes", "a query per label", "blocks"],
)
def test_a_member_is_as_if_alone(tmp_path, shape: AttentionShape, task: str) -> None:
    train, val = labelled(tmp_path, "t", 30, 0, task), labelled(tmp_path, "v", 16, 1, task)
    settings = ProbeSettings(
        epochs=3, batch_size=8, warmup_epochs=1, patience=2, sampler="balanced", loss=LossSettings("focal")
    )
    together = fit_attentive_grid(train, val, MEMBERS, shape, settings, dtype=torch.float64)
    for member, one in zip(MEMBERS, together, strict=True):
        alone = fit_attentive_grid(train, val, [member], shape, settings, dtype=torch.float64)[0]
        assert (alone.best_epoch, len(alone.history)) == (one.best_epoch, len(one.history))
        for name, tensor in alone.tensors.items():
            np.testing.assert_allclose(one.tensors[name], tensor, atol=1e-8, err_msg=name)
        np.testing.assert_allclose(one.predict_logits(val.tokens), token_logits(alone.tensors, val.tokens), atol=1e-8)


def test_the_same_call_gives_the_same_bytes_and_finds_the_token(tmp_path) -> None:
    train, val = labelled(tmp_path, "t", 240, 0), labelled(tmp_path, "v", 40, 1)
    shape = AttentionShape(D, 16, 2, 3, 3)
    settings = ProbeSettings(epochs=12, batch_size=16, warmup_epochs=2, patience=None)
    first, again = (fit_attentive_grid(train, val, [ProbeMember(1e-2)], shape, settings)[0] for _ in range(2))
    assert all(first.tensors[name].tobytes() == again.tensors[name].tobytes() for name in first.tensors)
    assert first.history == again.history
    assert first.val_score > 0.9
    looked_at = np.stack(list(token_attention(first.tensors, val.tokens)))
    assert looked_at.shape == (40, 3, 2, T)
    np.testing.assert_allclose(looked_at.sum(axis=3), 1.0, atol=1e-5)


class OnlineTokens(TokenRows):
    """Encodes the rows of every batch anew."""

    def __init__(self, inputs_NCDHW: torch.Tensor) -> None:
        self.inputs, self.file_ids, self._places = inputs_NCDHW, [""] * len(inputs_NCDHW), [{}]

    @property
    def shape(self) -> tuple[int, int]:
        return int(np.prod(ENCODER.grid)), ENCODER.width

    def read(self, rows_B, views_B=None) -> torch.Tensor:
        with torch.inference_mode():
            # one at a time, as the store's were: batches of another size round otherwise
            return torch.cat([ENCODER(self.inputs[[row]]).tokens_BND for row in rows_B.tolist()]).clone()


def test_cached_tokens_equal_online_encoding(tmp_path) -> None:
    inputs = torch.randn(36, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    online = OnlineTokens(inputs)
    tokens = online.read(np.arange(36)).numpy()
    cached = TokenRows([keep(tmp_path / "fp32", tokens)], [f"f{n}" for n in range(36)])
    assert torch.equal(cached.read(np.array([5, 0, 35])), online.read(np.array([5, 0, 35])))
    half = TokenRows([keep(tmp_path / "bf16", tokens, "bf16")], [f"f{n}" for n in range(36)])
    assert torch.equal(half.read(np.arange(36)), torch.from_numpy(tokens).bfloat16().float())
    y = np.random.default_rng(0).integers(0, 2, 36)
    y[:2], y[24:26] = (0, 1), (0, 1)
    names = np.array([f"p{n:02d}" for n in range(36)])
    shape = AttentionShape(16, 8, 2, 1, 2)

    def fit(rows: TokenRows):
        part = [
            FeatureSet(np.zeros((len(where), 1), np.float32), y[where], names[where], np.ones(len(where)), tokens=of)
            for where, of in rows
        ]
        return fit_attentive_grid(*part, MEMBERS[:2], shape, SETTINGS)

    train, val = np.arange(24), np.arange(24, 36)
    from_store = fit([(train, cached.select(train)), (val, cached.select(val))])
    anew = fit([(train, OnlineTokens(inputs[:24])), (val, OnlineTokens(inputs[24:]))])
    for one, other in zip(from_store, anew, strict=True):
        for name in one.tensors:
            np.testing.assert_array_equal(one.tensors[name], other.tensors[name], err_msg=name)


def test_views_are_drawn_by_row_and_epoch(tmp_path) -> None:
    plain = np.zeros((8, T, D))
    stores = [keep(tmp_path, plain)]
    stores += [keep(tmp_path, plain + number, view=View(number, {"flip": 0.5})) for number in (1, 2)]
    assert len({store.space.key for store in stores}) == 3
    rows = TokenRows(stores, [f"f{n}" for n in range(8)])
    assert rows.num_views == 2
    read = rows.read(np.array([0, 3, 4]), np.array([2, 0, 1]))
    assert read[:, 0, 0].tolist() == [2.0, 0.0, 1.0]


def test_memory_stays_that_of_a_batch(tmp_path) -> None:
    count, tokens, width, batch = 64, 128, 256, 4  # 8 MiB in float32
    rng = np.random.default_rng(0)
    store = TokenStore(tmp_path, space("bf16"))
    for start in range(0, count, 8):
        store.write_shard(
            [EncodedTokens(f"f{start + n}", rng.normal(size=(tokens, width)).astype(np.float32)) for n in range(8)]
        )
    rows = TokenRows([store], [f"f{n}" for n in range(count)])
    tracemalloc.start()
    for begin in range(0, count, batch):
        rows.read(np.arange(begin, begin + batch))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * batch * tokens * width * 2
    assert peak < count * tokens * width * 2 / 2


def test_parts_follow_from_the_bound() -> None:
    shape = AttentionShape(1024, 512, 8, 1, 3)
    each = member_bytes(SETTINGS, shape, 2048)
    settings = ProbeSettings(epochs=3, batch_size=8, warmup_epochs=1, max_member_bytes=3 * each)
    assert [len(part) for part in split_members(7, settings, shape, 2048)] == [3, 3, 1]
    blocks = AttentionShape(1024, 1024, 16, 1, 3, blocks=4)
    assert member_bytes(SETTINGS, blocks, 2048) > 10 * each


def test_wrong_heads_and_rows_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        AttentionShape(8, 10, 4, 1, 3)
    with pytest.raises(ValueError, match="one query, or one for each of 3 outputs"):
        AttentionShape(8, 8, 4, 2, 3)
    train, val = labelled(tmp_path, "t", 12, 0), labelled(tmp_path, "v", 12, 1)
    with pytest.raises(ValueError, match="tokens have the width 8; the heads take 9"):
        fit_attentive_grid(train, val, MEMBERS, AttentionShape(9, 8, 2, 1, 3), SETTINGS)
    store = TokenStore(tmp_path / "s", space())
    with pytest.raises(ValueError, match="tokens of one space have one shape"):
        store.write_shard([EncodedTokens(name, np.zeros((rows, 3), np.float32)) for name, rows in (("a", 2), ("b", 3))])


def test_every_weight_learns() -> None:
    for shape in (AttentionShape(D, 8, 2, 3, 3, head_width=4), AttentionShape(D, D, 2, 1, 3, blocks=3)):
        heads = AttentiveHeads(shape, [0, 1], dtype=torch.float64, device=torch.device("cpu"))
        x = torch.randn(4, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        nn.functional.softplus(heads.logits(x)).sum().backward()
        for name, parameter in heads.parameters.items():
            assert parameter.grad.abs().flatten(1).sum(1).min() > 0, name
