"""A study of attentive probes on kept tokens: one pass for tokens, vectors and views; resumption; prediction.

Oracle: the encoder run by hand on the same files, and the kept head as plain arithmetic in NumPy.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import contents
from safetensors.numpy import load_file
from test_study_labels import LABELS, values, write_images

from vitreous.config.compose import validate_study
from vitreous.core.errors import ConfigError
from vitreous.encoders.catalog import build_random_encoder
from vitreous.features.token_store import TokenRows
from vitreous.inputs.image_files import decode_image
from vitreous.inputs.prepare import finish_input, prepare_input
from vitreous.recipes.exported_files import load_exported
from vitreous.study.data import open_data
from vitreous.study.encode import encode_study, token_stores
from vitreous.study.encoders import open_encoders
from vitreous.study.explain import ExplainOptions, explain_model
from vitreous.study.export import export_model
from vitreous.study.plan import make_plan
from vitreous.study.predict import predict_files
from vitreous.study.run import Result, run_study
from vitreous.study.runtime import resolve_runtime

ATTENTIVE = {"kind": "attentive_probe", "epochs": 4, "hidden": 16, "heads": 2, "batch_size": 16, "dropout": 0.1}


def study(root: Path, **changes: Any) -> dict[str, Any]:
    made = values(root, name="attentive") | {
        "recipes": {
            "attentive": ATTENTIVE | {"grid": {"lr": [1e-2, 3e-2]}, "queries": "per_label"},
            "blocks": {"kind": "attentive_probe", "epochs": 1, "heads": 1, "blocks": 2, "batch_size": 16},
            "logistic": {"kind": "logistic_regression", "C": [1.0]},
        },
        "features": {"pooling": "tokens", "dtype": "bf16", "views": 1, "augment": {"flip": 0.5, "crop": 0.2}},
        "floors": ["majority", "shuffled"],
    }
    return made | changes


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    root = write_images(tmp_path_factory.mktemp("attentive"))
    return root, run_study(validate_study(study(root), where="test"))


def stores(root: Path):
    config = validate_study(study(root), where="test")
    runtime, data = resolve_runtime(config), open_data(config)
    [opened] = open_encoders(config, runtime, data.cache, data.modality)
    return config, runtime, data, opened, token_stores(config, runtime, data, opened)


def test_rows_on_tokens_and_on_vectors_stand_in_one_leaderboard(done) -> None:
    _, result = done
    table = result.leaderboard.set_index("recipe")
    assert set(table.index) == {"attentive", "blocks", "logistic", "majority", "shuffled"}
    assert table.loc["attentive", "test_map"] > table.loc["majority", "test_map"]
    width = 64
    # query, norms, key, value, out, head; each label has a query of its own
    learned = 3 * 16 + 2 * width + 2 * 16 + 16 * width + 16 * width + 16 + 16 * 16 + 16 + 3 * 16 + 3
    assert table.loc["attentive", "trainable_parameters"] == learned


def test_kept_tokens_are_the_encoders_own(done) -> None:
    root, _ = done
    _, _, data, opened, kept = stores(root)
    rows = TokenRows(kept, data.file_ids.tolist())
    encoder = build_random_encoder(
        "timm", architecture={"model": "test_vit", "img_size": [32, 32]}, seed=opened.source["seed"], modality="image"
    )
    path = root / "images" / str(data.cohort.samples["relative"].iloc[7])
    prepared = prepare_input(decode_image(path, max_bytes=10**6), encoder.spec)
    with torch.inference_mode():
        tokens = encoder(finish_input(prepared[None], encoder.spec)).tokens_BND
    torch.testing.assert_close(rows.read(np.array([7])), tokens.bfloat16().float(), atol=0.02, rtol=0.02)
    # a view of a training sample is something else, and test samples have none
    split = data.cohort.samples["split"]
    assert kept[1].known_files() == set(data.file_ids[(split == "train").to_numpy()])
    trained = int(np.flatnonzero(split == "train")[0])
    assert not torch.equal(rows.read(np.array([trained]), np.array([1])), rows.read(np.array([trained])))


def test_a_kept_head_is_plain_arithmetic(done) -> None:
    root, _ = done
    folder = root / "runs" / "attentive" / "tiny" / "attentive" / "seed0"
    p = {name: value.astype(np.float64) for name, value in load_file(folder / "best.safetensors").items()}
    _, _, data, _, kept = stores(root)
    preds = pd.read_parquet(folder / "test_preds.parquet")
    position = {name: row for row, name in enumerate(data.cohort.samples["sample_id"])}
    x = (
        TokenRows(kept, data.file_ids.tolist())
        .read(np.array([position[preds["sample_id"].iloc[0]]]))[0]
        .double()
        .numpy()
    )
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    normed = normed * p["norms.tokens.weight"] + p["norms.tokens.bias"]
    keys, content = normed @ p["layers.key.weight"].T, normed @ p["layers.value.weight"].T + p["layers.value.bias"]
    for c, name in enumerate(LABELS):
        heads = []
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            scores = keys[:, part] @ p["attentive.query"][c, part] / np.sqrt(8)
            attention = np.exp(scores - scores.max())
            heads.append(attention / attention.sum() @ content[:, part])
        out = p["layers.out.weight"] @ np.concatenate(heads) + p["layers.out.bias"]
        z = (out - out.mean()) / np.sqrt(out.var() + 1e-5) * p["norms.pooled.weight"] + p["norms.pooled.bias"]
        logit = z @ p["layers.head.weight"][c] + p["layers.head.bias"][c]
        assert preds[f"logit_{name}"].iloc[0] == pytest.approx(logit, abs=1e-4)


def test_what_is_lost_is_made_again_to_the_same_bytes(done) -> None:
    root, _ = done
    run, kept = root / "runs" / "attentive", ("*.parquet", "*.npy", "metrics.json", "leaderboard.csv", "*.safetensors")
    before = contents(run, *kept) | contents(root / "features", *kept)
    shard = sorted((root / "features" / "tokens").glob("*/tokens-*.parquet"))[0]
    shard.unlink()
    shard.with_suffix(".npy").unlink()
    shutil.rmtree(run / "tiny" / "attentive" / "seed1")
    result = run_study(validate_study(study(root), where="test"))
    assert contents(run, *kept) | contents(root / "features", *kept) == before
    assert result.run_dir == run


def test_a_second_study_encodes_nothing(done) -> None:
    root, _ = done
    config, runtime, data, opened, _ = stores(root)
    features = encode_study(config, runtime, data, [opened], frozen=["tiny"], on_tokens=["tiny"])
    assert features.summary.num_files == 0
    assert features.tokens["tiny"].num_views == 1


def test_plan_states_bytes_and_heads(done, tmp_path) -> None:
    root, _ = done
    plan = make_plan(validate_study(study(root, store=str(tmp_path / "empty")), where="test"))
    [encoder] = [one for one in plan.encoders if one.name == "tiny"]
    tokens, width, files, trained = 4, 64, 120, 60
    assert encoder.feature_bytes == (files + trained) * tokens * width * 2 + files * width * 2
    assert encoder.num_missing == files + trained
    recipe = next(one for one in plan.recipes if one.name == "attentive")
    assert (recipe.num_members, recipe.flops > 0, recipe.memory_bytes > 0) == (4, True, True)
    again = make_plan(validate_study(study(root), where="test"))
    assert again.encoders[0].feature_bytes == 0


def test_a_copied_head_predicts_new_files(done, tmp_path) -> None:
    root, _ = done
    kept = root / "runs" / "attentive" / "tiny" / "attentive" / "seed0"
    shutil.copytree(kept, tmp_path / "model")
    predict_files(tmp_path / "model", [str(root / "images")], tmp_path / "p.parquet", device="cpu")
    found = pd.read_parquet(tmp_path / "p.parquet")
    found.index = found["sample_id"].map(lambda name: Path(name).name)
    test = pd.read_parquet(kept / "test_preds.parquet").set_index("sample_id")
    rows = found.loc[test.index.map(lambda name: Path(name).name)]
    np.testing.assert_allclose(rows["logit_C2"], test["logit_C2"], atol=0.05)
    assert json.loads((kept / "model.json").read_text())["feature_space"]["pooling"] == "tokens"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"pooling": "mean"}}, "reads tokens, and features.pooling: mean keeps one vector"),
        ({"features": {"pooling": "tokens", "views": 2}}, "views, a number, and features.augment"),
        (
            {"features": {"pooling": "mean", "views": 2, "augment": {"flip": 0.5}}},
            "views of tokens; set features.pooling to tokens or grid",
        ),
        ({"recipes": {"a": ATTENTIVE | {"heads": 3}}}, r"hidden \(16\) must be a multiple of heads \(3\)"),
        ({"recipes": {"a": ATTENTIVE | {"blocks": 4}}}, "hidden has no effect with blocks"),
        ({"recipes": {"a": ATTENTIVE | {"head_width": 4}}}, "head_width has no effect with head: linear"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_study(study(tmp_path, **changes), where="test")


def test_an_encoder_without_tokens_is_refused_in_plan(done) -> None:
    root, _ = done
    changed = study(root, encoders={"small": {"family": "pixels", "random": {}}})
    with pytest.raises(ConfigError, match="gives no tokens but one vector"):
        make_plan(validate_study(changed, where="test"))


@pytest.mark.parametrize("recipe", ["attentive", "blocks", "logistic"])
def test_where_a_probe_looks_is_explained_with_the_rest(done, tmp_path, recipe) -> None:
    folder = done[0] / "runs" / "attentive" / "tiny" / recipe / "seed0"
    methods: list[Any] = [] if recipe == "attentive" else ["gradcam"]
    options = ExplainOptions(
        top=1, target="C2", methods=methods, attention=recipe == "attentive", steps=3, orders=5, draws=1
    )
    explained = explain_model(folder, tmp_path / "out", options=options)
    table = pd.read_csv(explained.out / "explanations.csv", keep_default_na=False)
    val = pd.read_parquet(folder / "val_preds.parquet").set_index("sample_id")
    by_key = {key: sample_id for sample_id, key in explained.keys.items()}
    for _, row in table.iterrows():  # from tokens that are not rounded to bf16, as the kept ones are
        logit = val.loc[by_key[row["sample"]], "logit_C2"]
        assert row["probability"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=0.02)
    if recipe != "attentive":
        return
    assert table["method"].iloc[0] == "attention_pooling"
    for key in explained.keys.values():
        heads = np.load(explained.out / key / "attention_pooling_heads.npy")
        assert heads.shape == (3, 2, 1, 2, 2), "a query for each label, two heads, the grid"
        np.testing.assert_allclose(heads.sum((2, 3, 4)), 1, rtol=1e-4)
        one = np.load(explained.out / key / "attention_pooling.npy")
        np.testing.assert_allclose(one, heads[1].mean(0), rtol=1e-5)
    states = pd.read_csv(explained.out / "attention_samples.csv").groupby("state").size()
    assert states.to_dict() == {"frozen": 2, "pooling": 2}


@pytest.mark.parametrize("recipe", ["attentive", "blocks"])
def test_a_head_is_exported_with_its_encoder(done, tmp_path, recipe) -> None:
    root, _ = done
    folder = root / "runs" / "attentive" / "tiny" / recipe / "seed0"
    exported = export_model(folder, tmp_path / "out", onnx=recipe == "attentive")
    assert exported.difference < 1e-4
    model = load_exported(tmp_path / "out")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        again = load_exported(tmp_path / "out")(x)
        torch.testing.assert_close(model(x), again)
    assert model.head.attention(torch.randn(2, 4, 64)).shape[-1] == 4
