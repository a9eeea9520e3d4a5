"""The synthetic cohort as files: bytes, layout, tables, resuming, planted flaws."""

import csv
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from vitreous.core.errors import UserError
from vitreous.core.fingerprints import hash_file
from vitreous.demo.cohort import CohortFiles, write_cohort
from vitreous.demo.flaws import plan_cohort
from vitreous.demo.participants import draw_participants
from vitreous.demo.recipe import CLASS_SHARES, CLASSES, CohortRecipe, Flaws, apportion
from vitreous.demo.scanners import SCANNERS

EVERY_FLAW = Flaws(**dict.fromkeys(Flaws.model_fields, 1))
SMALL = CohortRecipe(participants=12, participants_without_oct=1, flaws=Flaws.none(), seed=3)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _digests(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): hash_file(path) for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> CohortFiles:
    return write_cohort(tmp_path_factory.mktemp("small"), SMALL)


def test_same_recipe_gives_the_same_bytes_whatever_the_number_of_threads(small: CohortFiles, tmp_path: Path) -> None:
    again = write_cohort(tmp_path, SMALL, workers=1)
    assert again.num_written == small.num_written == small.num_volumes
    assert _digests(again.root) == _digests(small.root)


def test_every_file_says_what_the_manifest_says(small: CohortFiles) -> None:
    """Oracle: pydicom reads header and pixels; the manifest was written without looking at the files."""
    syntaxes = set()
    for row in _rows(small.manifest):
        assert row["filepath"].startswith("/")
        data = pydicom.dcmread(small.root / row["filepath"].lstrip("/"))
        shape = (int(row["number_of_frames"]), int(row["height"]), int(row["width"]))
        assert data.pixel_array.shape == shape
        assert data.pixel_array.std() > 0
        assert data.SOPClassUID == "1.2.840.10008.5.1.4.1.1.77.1.5.4"
        assert data.PhotometricInterpretation == "MONOCHROME2"
        assert (data.SOPInstanceUID, data.ImageLaterality) == (row["sop_instance_uid"], row["laterality"])
        assert (data.PatientID, str(data.PatientName)) == (row["participant_id"], "")
        measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert list(measures.PixelSpacing) == json.loads(row["pixel_spacing"])
        assert measures.SpacingBetweenSlices == float(row["slice_thickness"])
        positions = [
            group.PlanePositionSequence[0].ImagePositionPatient[2] for group in data.PerFrameFunctionalGroupsSequence
        ]
        np.testing.assert_allclose(np.diff(positions), measures.SpacingBetweenSlices, rtol=1e-4)
        syntaxes.add(data.file_meta.TransferSyntaxUID.name)
    assert len(syntaxes) == 3


def test_sixteen_bit_files_carry_a_rescale_that_gives_the_grey_values_back() -> None:
    from vitreous.demo.dicom import RESCALE_INTERCEPT, RESCALE_SLOPE, stored_values

    grey = np.linspace(0, 1, 101, dtype=np.float32).reshape(1, 1, 101)
    output = stored_values(grey, 16) * RESCALE_SLOPE + RESCALE_INTERCEPT
    np.testing.assert_allclose((output + 64) / (4 * 255), grey, atol=1 / (4 * 255 / RESCALE_SLOPE))


def test_our_own_decoder_reads_every_scanner(small: CohortFiles) -> None:
    """Oracle: pydicom's pixels, rescaled by hand."""
    from vitreous.inputs.decode import decode_volume
    from vitreous.inputs.volume import DeclaredAxes

    for device, scanner in SCANNERS.items():
        path = next((small.root / "retinal_oct/structural_oct" / device).rglob("*.dcm"))
        volume = decode_volume(path, declared=DeclaredAxes(axes=None, spacing_mm=None), max_bytes=1 << 30)
        assert volume.spacing_mm == pytest.approx(scanner.spacing_mm)
        stored = pydicom.dcmread(path).pixel_array
        expected = stored * 0.0625 - 64 if scanner.bits == 16 else stored
        np.testing.assert_array_equal(volume.voxels_DHW, expected.astype(np.float32))


def test_tables_hold_the_columns_of_the_issue(small: CohortFiles) -> None:
    people = _rows(small.participants)
    assert list(people[0])[:6] == [
        "participant_id", "clinical_site", "study_group", "age", "study_visit_date", "recommended_split",
    ]  # fmt: skip
    assert {row["retinal_oct"] for row in people} == {"TRUE", "FALSE"}
    assert {row["recommended_split"] for row in people} == {"train", "val", "test"}
    with_files = {row["participant_id"] for row in _rows(small.manifest)}
    assert with_files == {row["participant_id"] for row in people if row["retinal_oct"] == "TRUE"}
    found = {str(path.relative_to(small.root)) for path in small.root.rglob("*.dcm")}
    assert found == {row["filepath"][1:] for row in _rows(small.manifest)}


def test_classes_and_splits_are_exact() -> None:
    people = draw_participants(CohortRecipe())
    counts = [sum(person.grade == grade for person in people) for grade in range(len(CLASSES))]
    assert counts == apportion(len(people), CLASS_SHARES)
    for grade, count in enumerate(counts):
        per_split = [sum(p.grade == grade and p.split == split for p in people) for split in ("train", "val", "test")]
        assert per_split == apportion(count, CohortRecipe().split_shares)


def test_a_killed_call_is_continued_and_a_finished_cohort_left_alone(small: CohortFiles, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    seen = 0

    def kill_after_five(done: int = 1) -> None:
        nonlocal seen
        seen += done
        if seen == 5:
            raise Killed

    with pytest.raises(Killed):
        write_cohort(tmp_path, SMALL, kill_after_five, workers=1)
    assert not (tmp_path / "recipe.json").exists()
    written = len(list(tmp_path.rglob("*.dcm")))
    assert 5 <= written < small.num_volumes
    folder = next(path.parent for path in tmp_path.rglob("*.dcm"))
    (folder / ".half.dcm.x.part").write_bytes(b"half")
    next(tmp_path.rglob("*.dcm")).unlink()
    resumed = write_cohort(tmp_path, SMALL)
    assert resumed.num_written == small.num_volumes - written + 1
    assert _digests(tmp_path) == _digests(small.root)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert write_cohort(tmp_path, SMALL).num_written == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_recipe_in_the_same_folder_is_refused(small: CohortFiles) -> None:
    other = SMALL.model_copy(update={"strength": 2.0})
    with pytest.raises(UserError, match="whose recipe differs in strength"):
        write_cohort(small.root, other)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="so it is no synthetic cohort"):
        write_cohort(tmp_path, SMALL)
    with pytest.raises(UserError, match="is a file; name a folder"):
        write_cohort(tmp_path / "holiday.jpg", SMALL)


def test_a_damaged_recipe_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(UserError, match="is no recipe of a synthetic cohort"):
        write_cohort(tmp_path, SMALL)


def test_every_flaw_is_planted_once(tmp_path: Path) -> None:
    recipe = CohortRecipe(participants=40, participants_without_oct=1, flaws=EVERY_FLAW)
    plan = plan_cohort(recipe)
    carrier = {flaw: person for person, flaw in plan.flaw_of_participant.items()}
    assert carrier.keys() == Flaws.model_fields.keys()
    ids = [row.participant_id for row in plan.rows]
    with_files = {order.participant_id for order in plan.orders}
    assert carrier["participants_without_file"] not in with_files
    assert carrier["files_without_participant"] in with_files - set(ids)
    assert ids.count(carrier["participants_in_two_splits"]) == 2
    assert "0" + carrier["ids_differing_in_spelling"] in ids
    group = {row.participant_id: row.study_group for row in plan.rows}
    assert group[carrier["unknown_labels"]] == "gestational"
    assert group[carrier["missing_labels"]] == ""
    assert len(plan.flaw_of_file) == 5


def test_bad_files_are_bad_in_the_way_they_are_named(tmp_path: Path) -> None:
    """Oracle: pydicom where it judges the file; our decoder must refuse every one."""
    from datetime import date
    from io import BytesIO

    from vitreous.core.errors import InputError
    from vitreous.demo.dicom import FileFacts
    from vitreous.demo.flaws import FILE_FLAWS, spoil
    from vitreous.inputs.decode import decode_volume
    from vitreous.inputs.volume import DeclaredAxes

    scanner = SCANNERS["borealis"]
    rng = np.random.default_rng(0)
    grey = rng.uniform(size=(scanner.num_frames, scanner.num_rows, scanner.num_columns)).astype(np.float32)
    facts = FileFacts("1001", "R", date(2024, 1, 8), ("a", "b"))
    assert spoil("empty_files", grey, scanner, facts) == b""
    with pytest.raises(pydicom.errors.InvalidDicomError):
        pydicom.dcmread(BytesIO(spoil("mislabelled_files", grey, scanner, facts)))
    truncated = pydicom.dcmread(BytesIO(spoil("truncated_files", grey, scanner, facts)))
    with pytest.raises(ValueError, match=r"less than|actual length"):
        _ = truncated.pixel_array
    constant = pydicom.dcmread(BytesIO(spoil("constant_files", grey, scanner, facts)))
    assert np.ptp(constant.pixel_array) == 0
    oversized = spoil("oversized_files", grey, scanner, facts)
    assert len(oversized) < 100_000
    assert pydicom.dcmread(BytesIO(oversized)).Rows == 60_000
    for flaw in FILE_FLAWS:
        path = tmp_path / f"{flaw}.dcm"
        path.write_bytes(spoil(flaw, grey, scanner, facts))
        with pytest.raises(InputError):
            decode_volume(path, declared=DeclaredAxes(axes=None, spacing_mm=None), max_bytes=1 << 30)


def test_more_flaws_than_participants_are_refused(tmp_path: Path) -> None:
    recipe = CohortRecipe(participants=12, flaws=Flaws(truncated_files=30))
    with pytest.raises(UserError, match=r"plants 31 flaws, but only \d+ training participants"):
        write_cohort(tmp_path, recipe)


def test_a_recipe_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="split_shares must sum to 1"):
        CohortRecipe(split_shares=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="strength"):
        CohortRecipe(strength=-1)
