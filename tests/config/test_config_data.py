"""The `data` part of a study: kinds of images, what is accepted, what is refused, all at once."""

from typing import Any

import pytest

from vitreous.config.compose import load_study, validate_study
from vitreous.config.study import StudyConfig
from vitreous.core.errors import ConfigError

CSV: dict[str, Any] = {
    "kind": "csv",
    "table": "labels.csv",
    "files": "images",
    "image": "id_code",
    "label": "diagnosis",
    "classes": ["no_dr", "dr"],
    "label_map": {0: "no_dr", 1: "dr", 2.0: "dr"},
    "split": "part",
}
EACH: dict[str, Any] = {
    "table": {"train": "a.csv", "test": "b.csv"},
    "files": {"train": "a", "test": "b"},
    "split": {"val_fraction": 0.2},
}
FOLDER: dict[str, Any] = {"kind": "folder", "files": "images", "classes": ["no", "yes"]}
NPZ: dict[str, Any] = {"kind": "npz", "table": "retinamnist.npz", "axes": "HWC", "classes": ["no", "yes"]}


def study_of(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    encoders = {"multi": {"family": "vit3d", "checkpoint": "m.pt"}}
    return {"name": "dr", "data": data, "encoders": encoders, "recipes": {"l": {"kind": "linear_probe"}}} | changes


def validate(data: dict[str, Any], **changes: Any) -> StudyConfig:
    return validate_study(study_of(data, **changes))


def without(data: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in keys}


@pytest.mark.parametrize(
    "data",
    [
        CSV,
        CSV | {"split": {"fractions": [0.6, 0.2, 0.2]}, "patient": "subject", "domains": ["camera"]},
        CSV | {"split": {"train": "a.txt", "val": "b.txt", "test": "c.txt"}, "where": {"camera": ["A", "B"]}},
        CSV | EACH,
        CSV | EACH | {"files": "images"},
        CSV | {"table": {"train": "a.csv", "val": "b.csv", "test": "c.csv"}, "split": None},
        FOLDER,
        FOLDER | {"split": {"fractions": [0.6, 0.2, 0.2]}, "patient_pattern": r"^(?P<patient>\d+)_", "ignore": ["x"]},
        FOLDER | {"split": {"val_fraction": 0.1, "seed": 3}},
        NPZ,
        NPZ | {"axes": "HW"},
        NPZ | {"axes": "WDH", "max_volume_gb": 8, "spacing_mm": [1, 1, 1]},
    ],
)
def test_what_is_accepted_is_a_study_once_resolved(data: dict[str, Any]) -> None:
    config = validate(data)
    resolved = config.model_dump(mode="json")
    assert validate_study(resolved).model_dump(mode="json") == resolved
    if data["kind"] != "npz" or data["axes"] in ("HW", "HWC"):
        assert not {"spacing_mm", "max_volume_gb"} & resolved["data"].keys()


def test_label_map_keys_become_text() -> None:
    data = validate(CSV).data
    assert data.kind == "csv"
    assert data.label_map == {"0": "no_dr", "1": "dr", "2.0": "dr"}


def test_yaml_and_overrides(tmp_path: Any) -> None:
    (tmp_path / "s.yaml").write_text(
        "name: dr\nencoders: {e: {family: vit3d, checkpoint: m.pt}}\nrecipes: {l: {kind: linear_probe}}\n"
        "data: {kind: csv, table: {train: 'a. Training Labels.csv', test: b.csv}, files: {train: a, test: b}, "
        "image: Image name, label: Retinopathy grade, classes: [no_dr, dr], label_map: {0: no_dr, 1: dr}, "
        "split: {val_fraction: 0.2}}\n"
    )
    data = load_study(str(tmp_path / "s.yaml"), ["data.split.val_fraction=0.3", "data.files.test=c"]).data
    assert data.kind == "csv"
    assert data.label_map == {"0": "no_dr", "1": "dr"}
    assert data.files == {"train": "a", "test": "c"}
    assert data.split.model_dump() == {"val_fraction": 0.3, "seed": 0}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (without(CSV, "split"), r"data\.split: required with one table"),
        (CSV | {"axes": "DHW"}, r"data\.axes: unknown key"),
        (CSV | {"spacing_mm": [1, 1, 1]}, r"data\.spacing_mm: unknown key"),
        (CSV | {"imgae": "x"}, r"data\.imgae: unknown key; did you mean 'image'\?"),
        (
            CSV | {"label_map": {0: "no_dr", 1: "DR"}},
            r"names \['DR'\], which are not.*no value of label_map means .*'dr'",
        ),
        (
            CSV | {"label_map": {False: "no_dr", 1: "dr"}},
            r"YAML reads \[False\] as truth values; put the table's values",
        ),
        (CSV | {"split": {"val_fraction": 0.2}}, r"split\.val_fraction takes val out of train; it goes with a table"),
        (CSV | {"split": {"val_fraction": 1.2}}, r"data\.split\.val_fraction: input should be less than 1"),
        (
            CSV | {"split": {"val_fracton": 0.2}},
            r"data\.split: a split is a column or one file of ids.*got \{'val_fracton'",
        ),
        (CSV | {"split": {"fractions": [0.5, 0.2, 0.2]}}, r"data\.split: the shares .* must add up to 1; got 0\.9"),
        (CSV | {"split": {"train": "a.txt", "test": "b.txt"}}, r"one file of ids for each of train, val and test"),
        (CSV | {"files": {"train": "a", "test": "b"}}, r"files is given for each split, table is not"),
        (CSV | EACH | {"split": "part"}, r"there is no table for val; give one, or split: \{val_fraction"),
        (CSV | EACH | {"table": {"train": "a.csv"}}, r"data\.table: one place a split needs train and test"),
        (
            CSV | EACH | {"files": {"train": "a", "val": "c", "test": "b"}},
            r"files is given for \['train', 'val', 'test'\]",
        ),
        (
            CSV | EACH | {"table": {"train": "a", "val": "c", "test": "b"}},
            r"table is given for each split; leave split out",
        ),
        (CSV | EACH | {"table": {"train": "a", "tset": "b"}}, r"data\.table.*input should be 'train', 'val' or 'test'"),
        (FOLDER | {"split": "part"}, r"data\.split: a split is .* got 'part'"),
        (FOLDER | {"patient_pattern": "^(P"}, r"patient_pattern is no regular expression"),
        (FOLDER | {"patient_pattern": r"^(P\d)"}, r"patient_pattern needs the group patient, such as"),
        (FOLDER | {"ignore": ["no"]}, r"ignore and classes both name \['no'\]"),
        (FOLDER | {"table": "a.csv"}, r"data\.table: unknown key"),
        (NPZ | {"axes": "CHW"}, r"axes is HW or HWC for images, or an order of D, H and W"),
        (NPZ | {"max_volume_gb": 3}, r"axes HWC says that the items are images; max_volume_gb is for volumes"),
        (without(NPZ, "axes"), r"data\.axes: required"),
        (NPZ | {"axes": None}, r"data\.axes: an npz file does not say its axes"),
    ],
)
def test_what_is_refused_is_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        validate(data)


def test_folds_take_the_place_of_a_split() -> None:
    folds = {"k": 5}
    assert "split" not in validate(without(CSV, "split"), folds=folds).model_dump(mode="json")["data"]
    assert validate(FOLDER, folds=folds).folds is not None
    with pytest.raises(ConfigError, match=r"folds and data\.split both say who is in test"):
        validate(CSV, folds=folds)
    with pytest.raises(ConfigError, match=r"both say who is in test.*folds need one table of everybody"):
        validate(CSV | EACH, folds=folds)
    with pytest.raises(ConfigError, match=r"npz comes with its own splits"):
        validate(NPZ, folds=folds)


def test_all_problems_come_at_once() -> None:
    data = without(CSV, "image") | {"max_image_mb": 0, "label_map": {True: "a"}, "split": {"fractions": [1, 1, 1]}}
    with pytest.raises(ConfigError) as caught:
        validate(data)
    named = " ".join(caught.value.problems)
    for key in ("data.image", "data.max_image_mb", "data.label_map", "data.split.fractions.0"):
        assert key in named
