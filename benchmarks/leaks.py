"""Whether the leak gate finds what is planted, and leaves clean cohorts alone.

Command:   python benchmarks/leaks.py --json build/leaks.json
Hardware:  any; one process
Minutes:   about 10 on a busy core; --seeds and --clean set how many cohorts are made
Measures:  planted  share of cohorts with one leak of a kind that the gate refuses under the code of that kind, before a
                    feature is encoded
           clean    share of cohorts without a leak that it refuses, at any of its three stages
Data:      drawn here: 56 to 120 patients of one or two pictures of 64 × 64 that share a disc and a vignette; sites,
           devices and ages that go with the label more or less, never wholly; dates; ids of several forms; every
           fifth clean cohort is one of volumes.

Every share stands with its 95 % Wilson interval.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageEnhance
from safetensors.torch import save_file
from statsmodels.stats.proportion import proportion_confint

from vitreous.config.compose import validate_study
from vitreous.config.study import StudyConfig
from vitreous.core.errors import LeakError, SampleError
from vitreous.core.streams import numpy_stream
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.study.data import open_data
from vitreous.study.encode import encode_study
from vitreous.study.encoders import open_encoders
from vitreous.study.leak_gate import finish_gate, pass_gate_before_encoding
from vitreous.study.runtime import resolve_runtime

declare_torchvision_schemas()
import timm  # noqa: E402

CLASSES = ("healthy", "diseased")
SIDE = 64
MODEL = {"model": "test_vit", "img_size": [SIDE, SIDE]}
VOLUME_ENCODER = {"img_size": [6, 24, 24], "patch_size": [3, 12, 12], "embed_dim": 32, "depth": 1, "num_heads": 1}


@dataclass
class Plan:
    """A cohort to be written: one row an image, and the study's settings.

    Args:
        table: ``image, patient, grade, split`` and columns; `image` is the file's name.
        pictures: by file name.
        links: file name → the file it is a link to.
    """

    rng: np.random.Generator
    table: pd.DataFrame
    pictures: dict[str, Image.Image]
    data: dict[str, Any]
    encoder_input: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def pick(self, split: str) -> int:
        """A row of a split."""
        return int(self.rng.choice(self.table.index[self.table["split"] == split]))

    def copy_across(self, change: Callable[[Image.Image], Image.Image], suffix: str = ".png") -> None:
        """The picture of a test row becomes a changed copy of that of a training row."""
        source, target = self.pick("train"), self.pick("test")
        old = self.table.at[target, "image"]
        name = Path(old).with_suffix(suffix).as_posix()
        del self.pictures[old]
        self.pictures[name] = change(self.pictures[self.table.at[source, "image"]])
        self.table.at[target, "image"] = name


def draw_picture(rng: np.random.Generator, grade: int) -> Image.Image:
    """Soft blobs on a disc; those of the diseased are a little brighter."""
    axis = np.linspace(-1, 1, SIDE)
    radius = np.hypot(axis[:, None], axis[None, :])
    blobs = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = 60 + 70 * (1 - radius[..., None] ** 2) + (np.asarray(blobs, np.float64) - 127) * 0.4 + 8 * grade
    values = np.where(radius[..., None] < 1, values + rng.normal(0, 3, values.shape), 0)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def plan_clean(seed: int) -> Plan:
    """A cohort in which nothing is wrong, though sites, devices and ages go with the label."""
    rng = numpy_stream(seed, "leak benchmark")
    num_patients = int(rng.integers(56, 121))
    form = ("P{:03d}", "{:04d}", "sub-{:03d}", "A{:d}")[int(rng.integers(4))]
    grades = rng.permutation(np.arange(num_patients) % 2)
    shift = float(rng.uniform(0, 0.35))
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Image.Image] = {}
    for number, grade in enumerate(grades):
        fate = rng.random()
        common = {
            "patient": form.format(number + 1),
            "grade": CLASSES[grade],
            "split": "train" if number < 8 else "val" if number < 16 else "test" if number < 24 else
                     "train" if fate < 0.6 else "val" if fate < 0.8 else "test",
            "site": f"site{int(rng.random() < 0.5 + (shift if grade else -shift))}",
            "device": ("alpha", "beta", "gamma")[int(rng.integers(3))],
            "age": int(np.clip(rng.normal(55 + 20 * shift * grade, 12), 18, 95)),
            "acquired": str(pd.Timestamp("2019-01-01") + pd.Timedelta(days=int(rng.integers(1500)))).split()[0],
        }  # fmt: skip
        for eye in ("left", "right")[: 1 + int(rng.random() < 0.6)]:
            name = f"img_{common['patient']}_{eye}.png"
            pictures[name] = draw_picture(rng, int(grade))
            rows.append({"image": name, **common})
    table = pd.DataFrame(rows)
    order = rng.permutation(len(table))
    # the first of either grade in each split, so that every split has both
    return Plan(rng, table.iloc[order].reset_index(drop=True), pictures, {
        "kind": "csv", "image": "image", "label": "grade", "classes": list(CLASSES), "patient": "patient",
        "split": "split", "domains": ["site", "device"], "columns": ["age", "acquired"],
    })  # fmt: skip


def _patient_in_two_splits(plan: Plan) -> None:
    several = plan.table["patient"].value_counts()
    patient = plan.rng.choice(several.index[several > 1])
    rows = plan.table.index[plan.table["patient"] == patient]
    plan.table.loc[rows[0], "split"], plan.table.loc[rows[1], "split"] = "train", "test"


def _spelling_variants(plan: Plan) -> None:
    source, target = (plan.table.at[plan.pick(split), "patient"] for split in ("train", "test"))
    other = (lambda text: "0" + text if text[0].isdigit() else text.swapcase())(source)
    plan.table.loc[plan.table["patient"] == target, "patient"] = other
    plan.table.loc[plan.table["patient"] == other, "grade"] = plan.table.loc[
        plan.table["patient"] == other, "grade"
    ].iloc[0]


def _fellow_eye(plan: Plan) -> None:
    source, target = (plan.table.at[plan.pick(split), "patient"] for split in ("train", "test"))
    left, right = ((" L", " R"), ("_OD", "_OS"), ("-left", "-right"))[int(plan.rng.integers(3))]
    plan.table["patient"] = plan.table["patient"].replace({source: f"{source}{left}", target: f"{source}{right}"})


def _same_recording(plan: Plan) -> None:
    patients = plan.table["patient"].drop_duplicates().to_numpy()
    splits = plan.table.drop_duplicates("patient")["split"].to_numpy()
    word = ("clip", "part", "frame")[int(plan.rng.integers(3))]
    names = {patient: f"rec{number:03d}_{word}0" for number, patient in enumerate(patients)}
    source, target = (plan.rng.choice(patients[splits == split]) for split in ("train", "test"))
    names[target] = names[source].replace(f"{word}0", f"{word}1")
    plan.table["patient"] = plan.table["patient"].map(names)


def _same_file(plan: Plan) -> None:
    source, target = (plan.table.at[plan.pick(split), "image"] for split in ("train", "test"))
    del plan.pictures[target]
    plan.links[target] = source


def _conflicting_labels(plan: Plan) -> None:
    train = plan.table[plan.table["split"] == "train"]
    source, target = (train[train["grade"] == grade]["image"].iloc[0] for grade in CLASSES)
    plan.pictures[target] = plan.pictures[source]


def _near(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    changed = ImageEnhance.Brightness(picture).enhance(float(rng.uniform(0.9, 1.12)))
    if rng.random() < 0.5:
        changed = changed.resize((SIDE * 2, SIDE * 2), Image.Resampling.BICUBIC)
    return ImageEnhance.Contrast(changed).enhance(float(rng.uniform(0.9, 1.1)))


def _label_proxy(plan: Plan) -> None:
    ill = (plan.table["grade"] == CLASSES[1]).to_numpy()
    by_patient = dict(zip(plan.table["patient"], plan.rng.normal(0, 0.3, len(plan.table)), strict=True))
    if plan.rng.random() < 0.5:
        plan.table["hba1c"] = (5.2 + 2.5 * ill + plan.table["patient"].map(by_patient)).round(2)
        plan.data["columns"] = ["age", "hba1c"]
    else:
        plan.table["finding"] = np.where(ill, "1", "0")
        plan.data["columns"] = ["age", "finding"]


def _domain_tells_label(plan: Plan) -> None:
    column = ("site", "device")[int(plan.rng.integers(2))]
    ill = (plan.table["grade"] == CLASSES[1]).to_numpy()
    of_ill = np.where(plan.table["age"] % 2 == 0, "gamma", "delta")
    plan.table[column] = np.where(ill, of_ill, "alpha")


def _order_tells_label(plan: Plan) -> None:
    ill = (plan.table["grade"] == CLASSES[1]).to_numpy()
    days = pd.to_timedelta(plan.table["age"] * 3 + 700 * ill, unit="D")
    plan.table["acquired"] = (pd.Timestamp("2019-01-01") + days).dt.strftime("%Y-%m-%d")


def _label_in_path(plan: Plan) -> None:
    renamed = {row["image"]: f"{row['grade']}/{row['image']}" for row in plan.table.to_dict("records")}
    plan.pictures = {renamed[name]: picture for name, picture in plan.pictures.items()}
    plan.table["image"] = plan.table["image"].map(renamed)


def _scaler_of_test(plan: Plan) -> None:
    for row in plan.table.index[plan.table["split"] == "test"]:  # another camera: the means differ
        name = plan.table.at[row, "image"]
        plan.pictures[name] = ImageEnhance.Brightness(plan.pictures[name]).enhance(1.15)
    means = np.stack(
        [np.asarray(picture, np.float64).reshape(-1, 3).mean(axis=0) for picture in plan.pictures.values()]
    )
    plan.encoder_input |= {"mean": (means.mean(axis=0) / 255).round(4).tolist()}


def _label_column(plan: Plan) -> None:
    plan.data["domains"] = ["site", "grade"]


def _exact_duplicates(plan: Plan) -> None:
    plan.copy_across(Image.Image.copy, ".tif")


def _near_duplicates(plan: Plan) -> None:
    plan.copy_across(lambda picture: _near(picture, plan.rng))


KINDS: Mapping[str, Callable[[Plan], None]] = {
    "patient_in_two_splits": _patient_in_two_splits,
    "spelling_variants": _spelling_variants,
    "label_column": _label_column,
    "fellow_eye": _fellow_eye,
    "same_recording": _same_recording,
    "same_file": _same_file,
    "label_proxy": _label_proxy,
    "domain_tells_label": _domain_tells_label,
    "order_tells_label": _order_tells_label,
    "label_in_path": _label_in_path,
    "exact_duplicates": _exact_duplicates,
    "near_duplicates": _near_duplicates,
    "conflicting_labels": _conflicting_labels,
    "scaler_of_test": _scaler_of_test,
}
SHARED_SLICES = "shared_slices"


def write_plan(plan: Plan, root: Path) -> StudyConfig:
    """Table and pictures on disk, and the study on them."""
    for name, picture in plan.pictures.items():
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    for name, source in plan.links.items():
        os.link(root / "images" / source, root / "images" / name)
    plan.table.to_csv(root / "labels.csv", index=False)
    data = {**plan.data, "table": str(root / "labels.csv"), "files": str(root / "images")}
    weights = root / "test_vit.safetensors"
    save_file(timm.create_model("test_vit", img_size=SIDE).state_dict(), weights)  # random, but read as if trained
    encoder = {"family": "timm", "checkpoint": str(weights), "options": MODEL, "input": plan.encoder_input}
    return _study(root, data, encoder)


def write_cut_volumes(root: Path, seed: int, *, is_cut: bool) -> StudyConfig:
    """Volumes in one npz; with `is_cut`, a test volume is another cut of the recording of a training volume."""
    rng = numpy_stream(seed, "leak benchmark volumes")
    arrays: dict[str, npt.NDArray[Any]] = {}
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (count, 6, 24, 24), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 2
    if is_cut:
        shift = int(rng.integers(1, 5))
        arrays["test_images"][3, : 6 - shift] = arrays["train_images"][5, shift:]
    np.savez(root / "volumes.npz", **arrays)
    data = {"kind": "npz", "table": str(root / "volumes.npz"), "axes": "DHW", "classes": list(CLASSES)}
    return _study(root, data, {"family": "vit3d", "random": VOLUME_ENCODER})


def _study(root: Path, data: Mapping[str, Any], encoder: Mapping[str, Any]) -> StudyConfig:
    return validate_study({
        "name": "leaks", "data": dict(data), "encoders": {"tiny": dict(encoder)},
        "recipes": {"logistic": {"kind": "logistic_regression"}}, "floors": ["majority"], "seeds": [0],
        "device": "cpu", "precision": "fp32", "workers": 1, "runs": str(root / "runs"),
        "store": str(root / "features"), "cache": {"dir": str(root / "cache")},
    })  # fmt: skip


def refusal_of(config: StudyConfig, *, encodes: bool) -> tuple[str, ...]:
    """Codes under which the gate refuses; empty if it does not.

    Args:
        encodes: also encode, and let the features pass the gate.
    """
    runtime = resolve_runtime(config)
    try:
        data = open_data(config)
        encoders = open_encoders(config, runtime, data.cache, data.modality)
        gate = pass_gate_before_encoding(config, data, encoders, runtime.workers)
        if encodes:
            features = encode_study(config, runtime, data, encoders)
            finish_gate(gate, features, encoders, runtime.workers)
    except (LeakError, SampleError) as error:
        if not error.codes:
            raise
        return error.codes
    return ()


def measure(seeds: int, clean: int) -> dict[str, Any]:
    """Refusals by kind, and of clean cohorts."""
    planted = {kind: sum(is_refused(kind, seed) for seed in range(seeds)) for kind in [*KINDS, SHARED_SLICES]}
    refused = [codes for seed in range(clean) if (codes := clean_refusal(seed))]
    return {"seeds": seeds, "planted": planted, "clean": clean, "clean_refused": len(refused), "codes": refused}


def is_refused(kind: str, seed: int) -> bool:
    """Whether a cohort with this leak is refused under its code, and nothing was encoded."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if kind == SHARED_SLICES:
            config = write_cut_volumes(root, seed, is_cut=True)
        else:
            plan = plan_clean(seed)
            KINDS[kind](plan)
            config = write_plan(plan, root)
        found = refusal_of(config, encodes=False)
        if kind not in found:
            print(f"  {kind}, seed {seed}: refused as {found}")
        return kind in found and not list((root / "features").glob("??/*/shard-*.parquet"))


def clean_refusal(seed: int) -> tuple[str, ...]:
    """Codes under which a clean cohort is refused; every fifth is one of volumes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = write_cut_volumes(root, seed, is_cut=False) if seed % 5 == 4 else write_plan(plan_clean(seed), root)
        found = refusal_of(config, encodes=True)
        if found:
            print(f"  clean cohort {seed}: refused as {found}")
        return found


def _row(name: str, count: int, total: int) -> str:
    low, high = proportion_confint(count, total, method="wilson")
    return f"| {name} | {count} of {total} | {low:.3f}–{high:.3f} |"


def main() -> None:
    """Measure, print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="cohorts of each kind")
    parser.add_argument("--clean", type=int, default=100, help="clean cohorts")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.seeds, arguments.clean)
    print("| planted | refused before encoding | 95 % |\n|---|---|---|")
    for kind, count in found["planted"].items():
        print(_row(f"`{kind}`", count, found["seeds"]))
    print(_row("nothing (clean)", found["clean_refused"], found["clean"]))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
