"""The synthetic fundus cohort. Oracles: Pillow as a second decoder, dots counted on the pictures, the plan's shares."""

import csv
import io
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitreous.core.errors import UserError
from vitreous.demo.fundus import CAMERAS, draw_fundus_eye, encode_photograph, photograph
from vitreous.demo.fundus_cohort import FundusFlaws, plan_fundus_cohort, write_fundus_cohort
from vitreous.demo.fundus_figure import main as draw_figure
from vitreous.demo.fundus_lesions import draw_eye_severity, draw_lesions, expected_counts

CLEAN = FundusFlaws()
SMALL = {"num_patients": 20, "seed": 3, "size_px": 48}


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def dark_dots(image_HWC: np.ndarray) -> int:
    """Compact dark spots of the green channel that are small enough to vanish in a closing."""
    green = cv2.GaussianBlur(image_HWC[..., 1], (0, 0), 0.8)
    closed = cv2.morphologyEx(green, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13)))
    hats = closed.astype(float) - green
    field = ndimage.binary_erosion(image_HWC[..., 0] > 40, iterations=12)
    blobs, _ = ndimage.label((hats > 0.22 * closed) & field)
    compact = 0
    for number, place in enumerate(ndimage.find_objects(blobs), start=1):
        height, width = (side.stop - side.start for side in place)
        area = int((blobs[place] == number).sum())
        compact += 4 <= area <= 150 and max(height, width) <= 2 * min(height, width) and area > 0.5 * height * width
    return compact


@pytest.mark.parametrize("camera", ["a", "b"])
def test_dots_on_the_pictures_follow_the_grade(camera: str) -> None:
    grades = np.repeat(range(5), 10)
    rng = np.random.default_rng(0)
    counts = {1.0: [], 0.0: []}
    for strength, found in counts.items():
        for number, grade in enumerate(grades.tolist()):
            eye = draw_fundus_eye(draw_eye_severity(grade, strength, rng), "left", 1, number)
            image = photograph(eye, CAMERAS[camera], size_px=256, seed=1, names=(number,))
            found.append(dark_dots(image))
    assert 0.5 < stats.spearmanr(counts[1.0], grades).statistic < 0.97
    assert abs(stats.spearmanr(counts[0.0], grades).statistic) < 0.35


def test_lesions_have_their_expected_counts_and_neighbours_overlap() -> None:
    rng = np.random.default_rng(1)
    for severity in (0.0, 1.0, 2.5, 4.0):
        drawn = [draw_lesions(severity, (4.1, 0.3), rng) for _ in range(400)]
        dots, blots, clusters = expected_counts(severity)
        for mean, spots in ((dots, "microaneurysms"), (blots, "haemorrhages"), (clusters * 6.5, "exudates")):
            found = [len(getattr(lesions, spots)) for lesions in drawn]
            assert abs(np.mean(found) - mean) < 5 * np.std(found) / 20 + 1e-9, (severity, spots)
        centres = np.concatenate([lesions.haemorrhages.centre_L2 for lesions in drawn])
        assert (np.hypot(*(centres - [4.1, 0.3]).T) > 1.2).all()  # none on the disc
    severities = {g: [draw_eye_severity(g, 1.0, rng) for _ in range(500)] for g in (1, 2)}
    above = np.mean(np.array(severities[1])[:, None] > np.array(severities[2])[None])
    assert 0.01 < above < 0.05  # 1 - Phi(1 / (0.35 * sqrt 2)) = 0.022


def test_cameras_differ_where_they_say() -> None:
    eye = draw_fundus_eye(2.0, "right", 0, "eye")
    images = {name: photograph(eye, camera, size_px=256, seed=0, names=("x",)) for name, camera in CAMERAS.items()}
    assert {name: image.shape for name, image in images.items()} == {"a": (256, 256, 3), "b": (205, 256, 3)}
    for name, image in images.items():
        assert image[0, 0].max() == 0, name  # outside the field
    assert images["a"][0].max() == 0
    assert images["b"][0].max() > 30  # the frame cuts the field
    blueness = {name: image[60:150, 80:180].mean((0, 1)) for name, image in images.items()}
    ratio_b, ratio_a = (blueness[name][2] / blueness[name][0] for name in ("b", "a"))
    assert ratio_b > 1.2 * ratio_a
    sharp, soft = (
        photograph(eye, replace(CAMERAS["a"], blur=CAMERAS[name].blur, noise=0), size_px=256, seed=0, names=("x",))
        for name in ("a", "b")
    )
    edges = [np.abs(np.diff(image[60:180, 60:180].astype(float), axis=1)).mean() for image in (sharp, soft)]
    assert edges[1] < 0.85 * edges[0]


def test_left_eye_mirrors_right_eye() -> None:
    pictures = {}
    for side in ("left", "right"):
        eye = draw_fundus_eye(0.0, side, 5, "same")
        pictures[side] = photograph(eye, CAMERAS["a"], size_px=128, seed=5, names=("same",)).astype(float)
    bright = {
        side: int(ndimage.gaussian_filter(picture[..., 1], 4).max(0).argmax()) for side, picture in pictures.items()
    }
    assert bright["left"] < 45
    assert bright["right"] > 83


@pytest.mark.parametrize("camera", ["a", "b"])
def test_files_decode_and_equal_calls_give_equal_bytes(tmp_path: Path, camera: str) -> None:
    table = write_fundus_cohort(tmp_path / "one", camera=camera, workers=1, **SMALL)
    write_fundus_cohort(tmp_path / "two", camera=camera, workers=4, **SMALL)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    rows = read(table)
    assert list(rows[0]) == ["id_code", "diagnosis", "patient_id", "eye", "split", "camera"]
    extension = CAMERAS[camera].extension
    kind = {"png": "PNG", "jpg": "JPEG"}[extension]
    for row in rows:
        with Image.open(table.parent / "train_images" / f"{row['id_code']}.{extension}") as image:
            image.load()
            assert (image.format, image.mode) == (kind, "RGB")
    assert len(list((table.parent / "train_images").iterdir())) == len(rows)
    other = write_fundus_cohort(tmp_path / "three", camera=camera, **{**SMALL, "seed": 4})
    assert not {row["id_code"] for row in rows} & {row["id_code"] for row in read(other)}


def test_png_keeps_every_value() -> None:
    image = photograph(draw_fundus_eye(1.0, "left", 0, "x"), CAMERAS["a"], size_px=64, seed=0, names=("x",))
    decoded = np.asarray(Image.open(io.BytesIO(encode_photograph(image, CAMERAS["a"]))))
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize("camera", ["a", "b"])
def test_patients_are_whole_in_a_split_and_counted_out(camera: str) -> None:
    rows = plan_fundus_cohort(num_patients=200, seed=0, camera=camera, strength=1.0, flaws=CLEAN)
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.patient_id, set()).add(row.split)
    assert len(splits) == 200
    assert all(len(found) == 1 for found in splits.values())
    by_split = Counter(found.copy().pop() for found in splits.values())
    assert {name: by_split[name] / 200 for name in by_split} == pytest.approx(
        {"train": 0.6, "val": 0.15, "test": 0.25}, abs=0.02
    )
    shares = Counter(row.grade for row in rows)
    assert [shares[grade] / len(rows) for grade in range(5)] == pytest.approx(CAMERAS[camera].grade_shares, abs=0.05)
    eyes = Counter(Counter(row.patient_id for row in rows).values())
    assert 0.8 < eyes[2] / 200 < 0.98
    assert set(eyes) == {1, 2}
    assert len({row.id_code for row in rows}) == len(rows)


def test_flaws_are_where_the_ground_truth_says(tmp_path: Path) -> None:
    flaws = FundusFlaws(missing=1, truncated=2, duplicates=2, near_duplicates=2)
    table = write_fundus_cohort(tmp_path / "cohort", camera="a", flaws=flaws, **{**SMALL, "num_patients": 40})
    rows, truth = (
        {row["id_code"]: row for row in read(tmp_path / "cohort" / name)} for name in (table, "ground_truth.csv")
    )
    found = Counter(row["flaw"] for row in truth.values())
    assert {name: found[name] for name in ("missing", "truncated", "duplicate", "near_duplicate")} == {
        "missing": 1,
        "truncated": 2,
        "duplicate": 2,
        "near_duplicate": 2,
    }
    for id_code, row in truth.items():
        path = table.parent / "train_images" / f"{id_code}.png"
        assert path.exists() == (row["flaw"] != "missing")
        if row["flaw"] == "truncated":
            with pytest.raises(OSError, match=r"truncated|broken"), Image.open(path) as image:
                image.load()
        if row["source"]:
            source = path.with_name(f"{row['source']}.png")
            assert (path.read_bytes() == source.read_bytes()) == (row["flaw"] == "duplicate")
            shown, original = (np.asarray(Image.open(file)).astype(float) for file in (path, source))
            if row["flaw"] == "near_duplicate":
                np.testing.assert_array_equal(shown[:, 1:], np.minimum(np.rint(original[:, :-1] * 1.04), 255))
            assert rows[id_code]["split"] == "test"
            assert rows[row["source"]]["split"] == "train"
            assert rows[id_code]["patient_id"] != rows[row["source"]]["patient_id"]
    clean = plan_fundus_cohort(num_patients=40, seed=3, camera="a", strength=1.0, flaws=CLEAN)
    assert [(row.id_code, str(row.grade)) for row in clean] == [(i, row["diagnosis"]) for i, row in rows.items()]


def test_an_interrupted_call_continues(tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    table = write_fundus_cohort(out, camera="b", **SMALL)
    whole = files_of(out)
    table.unlink()
    removed = sorted((out / "train_images").iterdir())[::3]
    for path in removed:
        path.unlink()
    kept = sorted((out / "train_images").iterdir())[0]
    before = kept.stat().st_mtime_ns
    seen = []
    write_fundus_cohort(out, camera="b", progress=seen.append, **SMALL)
    assert files_of(out) == whole
    assert kept.stat().st_mtime_ns == before
    assert sum(seen) == len(read(table))


def test_wrong_folders_and_numbers_are_refused(tmp_path: Path) -> None:
    write_fundus_cohort(tmp_path / "cohort", camera="b", **SMALL)
    with pytest.raises(UserError, match="differs in seed"):
        write_fundus_cohort(tmp_path / "cohort", camera="b", **{**SMALL, "seed": 9})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match=r"such as diary\.txt"):
        write_fundus_cohort(tmp_path / "notes", camera="b", **SMALL)
    with pytest.raises(UserError, match="is a file"):
        write_fundus_cohort(tmp_path / "notes" / "diary.txt", camera="b", **SMALL)
    (tmp_path / "cohort" / "recipe.json").write_text("[1")
    with pytest.raises(UserError, match="no recipe"):
        write_fundus_cohort(tmp_path / "cohort", camera="b", **SMALL)
    for change, message in (
        ({"num_patients": 19}, "got 19"),
        ({"size_px": 31}, "got 31"),
        ({"strength": -1.0}, r"got -1\.0"),
        ({"flaws": FundusFlaws(missing=-1)}, "negative missing"),
        ({"flaws": FundusFlaws(duplicates=30)}, "needs 30 training images and 30 test images"),
    ):
        with pytest.raises(UserError, match=message):
            write_fundus_cohort(tmp_path / "new", camera="b", **{**SMALL, **change})
    assert not (tmp_path / "new").exists()


def test_figure_shows_every_grade_by_both_cameras(tmp_path: Path) -> None:
    draw_figure(["--out", str(tmp_path / "new")])
    with Image.open(tmp_path / "new" / "synthetic_fundus.png") as image:
        assert image.size == (5 * 224, 2 * 224)
        cells = np.asarray(image.convert("RGB")).reshape(2, 224, 5, 224, 3)
    assert (cells.mean((1, 3, 4)) > 30).all()


def test_recipe_says_what_was_asked(tmp_path: Path) -> None:
    write_fundus_cohort(tmp_path, camera="a", strength=0.5, **SMALL)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert {name: recipe[name] for name in (*SMALL, "camera", "strength")} == {**SMALL, "camera": "a", "strength": 0.5}


def test_three_hundred_photographs_take_under_twenty_seconds_of_one_core() -> None:
    began = time.process_time()
    for number in range(10):
        eye = draw_fundus_eye(2.0, "left", 0, number)
        image = photograph(eye, CAMERAS["a"], size_px=256, seed=0, names=(number,))
        encode_photograph(image, CAMERAS["a"])
    assert (time.process_time() - began) * 30 < 20


def simple_features(image_HWC: np.ndarray) -> list[float]:
    """Dark dots, and the shares of pixels well above and well below their surroundings in green."""
    green = image_HWC[..., 1]
    around = cv2.GaussianBlur(green, (0, 0), 12).astype(float)
    return [dark_dots(image_HWC), (green - around > 25).mean(), (around - green > 25).mean()]


@pytest.mark.slow
def test_documented_bounds_and_gap(tmp_path: Path) -> None:
    """The figures under "What to expect" in docs/synthetic_fundus.md; oracle: scikit-learn."""
    inputs: dict[str, dict[str, np.ndarray]] = {}
    grades, splits = {}, {}
    for camera, num_patients in (("a", 160), ("b", 80)):
        table = write_fundus_cohort(tmp_path / camera, num_patients=num_patients, seed=0, camera=camera, size_px=256)
        rows, truth = read(table), read(table.with_name("ground_truth.csv"))
        folder, extension = table.parent / "train_images", CAMERAS[camera].extension
        pictures = [np.asarray(Image.open(folder / f"{row['id_code']}.{extension}")) for row in rows]
        counts = np.array(
            [[int(row[name]) for name in ("microaneurysms", "haemorrhages", "exudates")] for row in truth]
        )
        inputs[camera] = {
            "truth": np.concatenate([counts, np.sqrt(counts)], axis=1),
            "by hand": np.array([simple_features(picture) for picture in pictures]),
            "pixels": np.array([cv2.resize(p, (28, 28), interpolation=cv2.INTER_AREA).ravel() for p in pictures]) / 255,
        }
        grades[camera] = np.array([int(row["diagnosis"]) for row in rows])
        splits[camera] = np.array([row["split"] for row in rows])
    scores = {}
    for name, strength in (("truth", 1.0), ("by hand", 1.0), ("pixels", 0.1)):
        is_test = splits["a"] == "test"
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, max_iter=5000, class_weight="balanced")
        ).fit(inputs["a"][name][~is_test], grades["a"][~is_test])
        for camera, rows_N in (("a", is_test), ("b", np.ones(len(grades["b"]), bool))):
            predicted, true = model.predict(inputs[camera][name][rows_N]), grades[camera][rows_N]
            kappa = cohen_kappa_score(true, predicted, weights="quadratic")
            scores[name, camera] = (balanced_accuracy_score(true, predicted), kappa)
    expected = {("truth", "a"): (0.72, 0.92), ("truth", "b"): (0.65, 0.90)}
    expected |= {("by hand", "a"): (0.46, 0.77), ("by hand", "b"): (0.26, 0.42)}
    for key, (accuracy, kappa) in expected.items():
        assert scores[key] == pytest.approx((accuracy, kappa), abs=0.03), key
    assert max(scores["pixels", "a"][0], scores["pixels", "b"][0]) < 0.3  # chance is 0.2
