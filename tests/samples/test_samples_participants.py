"""Cohorts of a table and its files. Oracle: the frames the files were written from, joined by hand."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cohort_tables import CLASSES, DEVICES, Tables, listing_of, manifest_frame, people_frame

from vitreous.core.errors import SampleError
from vitreous.samples.cohort import EXCLUDED_COLUMNS, SAMPLE_COLUMNS, Cohort
from vitreous.samples.folds import fold_cohorts
from vitreous.storage.location import Location, ObjectInfo


def rules(cohort: Cohort) -> dict[str, int]:
    return cohort.excluded["rule"].value_counts().to_dict()


def codes(cohort: Cohort) -> set[str]:
    return {finding.code for finding in cohort.findings}


def accounted(cohort: Cohort, rows: int) -> bool:
    """rows = samples + excluded by rule, and each excluded row has a rule."""
    return len(cohort.samples) + len(cohort.excluded) == rows and (cohort.excluded["rule"] != "").all()


def test_manifest_and_listing(tables: Tables) -> None:
    cohort = tables.load(domains=["clinical_site", "device"])
    samples = cohort.samples
    assert tuple(samples.columns[: len(SAMPLE_COLUMNS)]) == SAMPLE_COLUMNS
    assert len(samples) == len(tables.manifest)
    assert samples["sample_id"].is_unique
    expected = samples.sort_values(["patient_id", "sample_id"], ignore_index=True)
    pd.testing.assert_frame_equal(samples, expected)
    truth = tables.people.set_index("participant_id")
    assert (samples["clinical_site"] == samples["patient_id"].map(truth["clinical_site"])).all()
    assert (samples["split"] == samples["patient_id"].map(truth["recommended_split"])).all()
    size_of = {info.relative: (info.size, info.etag) for info in tables.listing}
    assert [size_of[path] for path in samples["relative"]] == list(zip(samples["size"], samples["etag"]))
    assert not samples["relative"].str.startswith("/").any()
    assert (samples["item"] == -1).all()
    assert np.allclose(samples.groupby("patient_id")["weight"].sum(), 1)
    assert set(samples["device"]) == set(DEVICES)
    assert set(samples["laterality"]) == {"L", "R"}
    assert list(cohort.excluded.columns) == list(EXCLUDED_COLUMNS)
    assert cohort.findings == ()


def test_test_labels_are_sealed(tables: Tables) -> None:
    cohort = tables.load()
    samples = cohort.samples
    test = samples["split"] == "test"
    truth = samples["patient_id"].map(tables.people.set_index("participant_id")["study_group"]).map(CLASSES.index)
    assert (samples.loc[test, "y"] == -1).all()
    assert (samples.loc[~test, "y"] == truth[~test]).all()
    opened = cohort.open_test_labels()
    assert opened == dict(zip(samples.loc[test, "sample_id"], truth[test]))
    assert "SealedLabels()" in repr(cohort)


def test_counts_hold_the_test_split_too(tables: Tables) -> None:
    cohort = tables.load(domains=["clinical_site", "device"])
    truth = tables.people.rename(columns={"recommended_split": "split", "study_group": "class"})
    by_hand = truth.groupby(["split", "class"]).size().to_dict()
    got = cohort.count_by(["split", "class"])
    assert {(row.split, row[1]): row.patients for row in got.itertuples(index=False)} == by_hand
    assert (got["volumes"] == 4 * got["patients"]).all()
    assert list(cohort.counts.columns) == ["split", "class", "clinical_site", "device", "patients", "volumes"]
    assert cohort.counts["volumes"].sum() == len(cohort.samples)
    assert list(got["split"].unique()) == ["train", "val", "test"]


def test_listing_and_pattern(tables: Tables) -> None:
    extra = ObjectInfo(Location("s3", "eye", "readme.txt"), "readme.txt", 5, "e")
    tables.listing.append(extra)
    cohort = tables.load(with_manifest=False, domains=["device"])
    assert set(cohort.samples["device"]) == set(DEVICES)
    assert len(cohort.samples) == len(tables.listing) - 1
    assert codes(cohort) == {"unmatched_keys"}
    other = tables.load(with_manifest=False, pattern="**/{scanner}/{patient}/*_{laterality}.dcm", domains=["scanner"],
                        volumes="one per eye")  # fmt: skip
    assert len(other.samples) == 2 * len(tables.people)
    assert set(other.samples["scanner"]) == {"maestro"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("oct/{patient}/*.dcm", r"no key matches the pattern 'oct/\{patient\}/\*\.dcm'; 96 keys were listed, e\.g\. "
         r"'retinal_oct/.*' and 93 more\. Set data\.pattern"),
        ("oct/{device}/*.dcm", r"it has no \{patient\}"),
        ("{patient}/{patient}/*", r"\{patient\} is not a new name"),
        ("{patient/*.dcm", r"unbalanced '\{' at position 1"),
        ("{patient}/{my device}", r"\{my device\} is not a new name"),
    ],
)  # fmt: skip
def test_bad_pattern(tables: Tables, pattern: str, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        tables.load(with_manifest=False, pattern=pattern)


def test_person_id_of_newer_releases(tables: Tables) -> None:
    tables.people = tables.people.rename(columns={"participant_id": "person_id"})
    cohort = tables.load()  # the manifest still says participant_id
    assert len(cohort.samples) == len(tables.manifest)
    assert codes(cohort) == {"patient_column"}
    with pytest.raises(SampleError, match=r"no column 'subject' for patients; found \['person_id'"):
        tables.load(patient="subject")


def test_leading_zeros_stay(tables: Tables) -> None:
    tables.people["participant_id"] = "0" + tables.people["participant_id"]
    tables.manifest = manifest_frame(tables.people)
    tables.listing = listing_of(tables.manifest)
    assert tables.load().samples["patient_id"].iloc[0] == "01000"


def test_where_by_truth_value_and_list(tables: Tables) -> None:
    tables.people.loc[:3, "retinal_oct"] = "False"
    is_kept = (tables.people["retinal_oct"] == "TRUE") & (tables.people["clinical_site"] != "UCSD")
    turn = tables.people[is_kept].groupby("study_group").cumcount() % 3  # every class in every split
    tables.people.loc[is_kept, "recommended_split"] = turn.map({0: "train", 1: "val", 2: "test"})
    cohort = tables.load(where={"retinal_oct": True, "clinical_site": ["UAB", "UW"]})
    kept = tables.people[(tables.people["retinal_oct"] == "TRUE") & (tables.people["clinical_site"] != "UCSD")]
    assert set(cohort.samples["patient_id"]) == set(kept["participant_id"])
    assert rules(cohort) == {"where": 4 * (len(tables.people) - len(kept))}
    assert accounted(cohort, len(tables.manifest))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"retinal_oct": False}, "no row has retinal_oct=False; the column holds 'TRUE'"),
        ({"clinical_site": ["UW", "MIT"]}, "no row has clinical_site='MIT'; the column holds 'UAB', 'UCSD', 'UW'"),
        ({"retinal_oc": True}, "no column 'retinal_oc' for where.*Did you mean 'retinal_oct'"),
    ],
)
def test_where_that_matches_nothing(tables: Tables, where: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        tables.load(where=where)


@pytest.mark.parametrize("empty", ["", "n/a", "NaN"])
def test_missing_label_and_split_are_excluded(tables: Tables, empty: str) -> None:
    tables.people.loc[0, "study_group"] = empty
    tables.people.loc[1, "recommended_split"] = empty
    cohort = tables.load()
    assert rules(cohort) == {"missing label": 4, "missing split": 4}
    assert accounted(cohort, len(tables.manifest))
    assert codes(cohort) == {"participants_left_out"}


def test_unknown_label_is_refused_with_the_nearest(tables: Tables) -> None:
    tables.people.loc[[4, 8], "study_group"] = "helthy"
    with pytest.raises(SampleError, match=r"unknown label 'helthy'.*\(lines 6, 10\).*Nearest class: 'healthy'"):
        tables.load()


def test_unknown_split_is_refused(tables: Tables) -> None:
    tables.edit_people("recommended_split", lambda cells: cells.replace("val", "validation"))
    with pytest.raises(SampleError, match=r"must hold train, val or test; got 'validation'\. Rename"):
        tables.load()


def test_split_in_any_case(tables: Tables) -> None:
    tables.edit_people("recommended_split", lambda cells: " " + cells.str.upper())
    cohort = tables.load()
    assert set(cohort.samples["split"]) == {"train", "val", "test"}
    assert codes(cohort) == {"stray_spaces"}


def test_several_rows_that_agree(tables: Tables) -> None:
    visit = tables.people.head(3).assign(study_group="n/a")  # a visit without a label hides none with it
    tables.people = pd.concat([visit, tables.people, tables.people.head(5)], ignore_index=True)
    cohort = tables.load(domains=["clinical_site"])
    assert len(cohort.samples) == len(tables.manifest)
    assert not rules(cohort)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("study_group", "insulin_dependent", r"1 participants have rows with different labels: '1000' \(lines 2, 26\)"),
        ("recommended_split", "test", r"1 participants have rows with different splits: '1000'"),
        ("clinical_site", "UW", r"different values of 'clinical_site': '1000'.*leave it out of domains"),
    ],
)
def test_several_rows_that_differ(tables: Tables, column: str, value: str, message: str) -> None:
    tables.people = pd.concat([tables.people, tables.people.head(1).assign(**{column: value})], ignore_index=True)
    with pytest.raises(SampleError, match=message):
        tables.load(domains=["clinical_site"])


@pytest.mark.parametrize("spelling", ["01000", "P1000", "sub-1000", "1000.0"])
def test_ids_that_differ_only_in_spelling(tables: Tables, spelling: str) -> None:
    extra = tables.people.head(1).assign(participant_id=spelling)
    tables.people = pd.concat([tables.people, extra], ignore_index=True)
    with pytest.raises(SampleError, match=f"1 groups of ids differ only in spelling.*{spelling} .line 26.") as caught:
        tables.load()
    assert "1000 (line 2)" in str(caught.value)


def test_ids_of_files_spelled_otherwise(tables: Tables) -> None:
    tables.manifest["participant_id"] = "P" + tables.manifest["participant_id"]
    with pytest.raises(SampleError, match=r"24 ids of the files differ .* 'P1000 \(table: 1000\)'.* and 14 more"):
        tables.load()


def test_no_id_in_common(tables: Tables) -> None:
    tables.manifest["participant_id"] = "9" + tables.manifest["participant_id"]
    with pytest.raises(SampleError, match=r"none of the 24 ids of the files is in the table; files have '91000'"):
        tables.load()


def test_strangers_and_participants_without_files(tables: Tables) -> None:
    tables.people = tables.people.drop(index=[0, 1])
    tables.manifest = tables.manifest[~tables.manifest["participant_id"].isin(["1002", "1003"])]
    cohort = tables.load()
    assert rules(cohort) == {"no participant": 8}
    assert cohort.patients_without_files == ("1002", "1003")
    assert codes(cohort) == {
        "files_without_participant", "participants_without_files", "objects_without_manifest_row",
    }  # fmt: skip
    assert not any("1002" in finding.title + finding.evidence for finding in cohort.findings)  # findings name nobody


def test_rows_without_object(tables: Tables) -> None:
    del tables.listing[10]
    cohort = tables.load()
    assert rules(cohort) == {"file missing": 1}
    assert accounted(cohort, len(tables.manifest))


def test_wrong_root_is_told(tables: Tables) -> None:
    tables.listing = [ObjectInfo(info.location, "x/" + info.relative, 1, "") for info in tables.listing]
    with pytest.raises(SampleError, match=r"none of its 96 paths exists below the root.*Check data\.files"):
        tables.load()


def test_neither_manifest_nor_listing(tables: Tables) -> None:
    with pytest.raises(SampleError, match="neither a manifest nor a listing"):
        tables.load(with_manifest=False, with_listing=False)


def test_manifest_alone(tables: Tables) -> None:
    cohort = tables.load(with_listing=False)
    assert len(cohort.samples) == len(tables.manifest)
    assert (cohort.samples["size"] == -1).all()


def test_duplicates_of_one_patient(tables: Tables) -> None:
    same_path = tables.manifest.iloc[[0]].assign(filepath=tables.manifest["filepath"][0].lstrip("/"))
    same_sop = tables.manifest.iloc[[1]].assign(filepath="/retinal_oct/structural_oct/maestro/1000/zz_copy.dcm")
    other = tables.manifest.iloc[[2]].assign(filepath="/zz_bytes.dcm", sop_instance_uid="1.2.other")
    tables.manifest = pd.concat([tables.manifest, same_path, same_sop, other], ignore_index=True)
    key = "retinal_oct/structural_oct/maestro/1000/zz_copy.dcm"
    twin = tables.listing[2]
    tables.listing += [
        ObjectInfo(Location("s3", "eye", key), key, 1, "f" * 32),
        ObjectInfo(Location("s3", "eye", "zz_bytes.dcm"), "zz_bytes.dcm", twin.size, twin.etag),
    ]
    cohort = tables.load()
    assert rules(cohort) == {"duplicate": 3}
    assert set(cohort.excluded["detail"].str.split().str[1]) == {"path", "SOP", "content"}
    assert accounted(cohort, 99)
    assert cohort.samples["sample_id"].is_unique


def test_one_volume_under_two_patients(tables: Tables) -> None:
    twin, other = tables.listing[0], tables.listing[4]  # of 1000 and of 1001
    tables.listing[4] = ObjectInfo(other.location, other.relative, twin.size, twin.etag)
    tables.manifest.loc[9, "sop_instance_uid"] = tables.manifest.loc[1, "sop_instance_uid"]  # of 1002 and of 1000
    cohort = tables.load()
    assert rules(cohort) == {"one volume under two patients": 4}
    assert "volume_of_two_patients" in codes(cohort)


@pytest.mark.parametrize(
    ("volumes", "each", "left"),
    [
        ("all", 4, {}),
        ("first", 1, {"volumes": 72}),
        ("one per eye", 2, {"volumes": 48}),
        ({"manufacturers_model_name": "spectralis"}, 2, {"volumes": 48}),
        ({"device": ["spectralis", "maestro"], "laterality": "L"}, 2, {"volumes": 48}),
        ({"region": "disc", "laterality": "R"}, 1, {"volumes": 72}),
    ],
)
def test_choice_of_volumes(tables: Tables, volumes: Any, each: int, left: dict[str, int]) -> None:
    cohort = tables.load(volumes=volumes)
    assert (cohort.samples.groupby("patient_id").size() == each).all()
    assert np.allclose(cohort.samples["weight"], 1 / each)
    assert rules(cohort) == left


@pytest.mark.parametrize(
    ("volumes", "message"),
    [
        ({"manufacturer_model_name": "x"}, "no column 'manufacturer_model_name'.*mean 'manufacturers_model_name'"),
        ({"device": "cirrus"}, "no row has device='cirrus'; the column holds 'maestro', 'spectralis'"),
        ("newest", "volumes must be all, first, 'one per eye' or a filter"),
    ],
)
def test_bad_choice_of_volumes(tables: Tables, volumes: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        tables.load(volumes=volumes)


def test_one_per_eye_without_eyes(tables: Tables) -> None:
    with pytest.raises(SampleError, match="'one per eye' needs the eye; give a manifest with a column laterality"):
        tables.load(with_manifest=False, volumes="one per eye")
    tables.manifest.loc[0, "laterality"] = ""
    assert rules(tables.load(volumes="one per eye"))["eye unknown"] == 1


def test_unknown_domain_and_label_as_domain(tables: Tables) -> None:
    with pytest.raises(SampleError, match="neither the table nor the files have 'hospital'"):
        tables.load(domains=["hospital"])
    with pytest.raises(SampleError, match="domains or columns hold the label 'study_group'"):
        tables.load(domains=["study_group"])
    tables.people.loc[0, "clinical_site"] = ""
    assert "unknown" in set(tables.load(domains=["clinical_site"]).samples["clinical_site"])


def test_class_without_training_participant(tables: Tables) -> None:
    train = (tables.people["recommended_split"] == "train") & (tables.people["study_group"] == "healthy")
    tables.people.loc[train, "recommended_split"] = "val"
    with pytest.raises(SampleError, match="no patient of the split 'train' has the class 'healthy'"):
        tables.load()


def test_class_absent_from_val_is_refused_and_from_test_a_finding(tables: Tables) -> None:
    people = tables.people
    is_healthy = people["study_group"] == "healthy"
    tables.people = people[~(is_healthy & (people["recommended_split"] == "val"))]
    with pytest.raises(SampleError, match="no patient of the split 'val' has the class 'healthy', so nothing could be"):
        tables.load()
    tables.people = people[~(is_healthy & (people["recommended_split"] == "test"))]
    assert "class_absent" in codes(tables.load())


def test_without_a_split_all_labels_are_sealed_until_folds_give_one(tables: Tables) -> None:
    tables.people = tables.people.drop(columns="recommended_split")
    cohort = tables.load(split=None)
    assert set(cohort.samples["split"]) == {""}
    assert set(cohort.samples["y"]) == {-1}
    assert set(cohort.count_by(["split", "class"])["split"]) == {""}
    assert set(fold_cohorts(cohort, num_folds=3, seed=0)[0].samples["split"]) == {"train", "val", "test"}


def test_empty_split(tables: Tables) -> None:
    tables.edit_people("recommended_split", lambda cells: cells.replace("test", "val"))
    with pytest.raises(SampleError, match="the split 'test' has no patient with a file"):
        tables.load()


def test_nothing_left(tables: Tables) -> None:
    with pytest.raises(SampleError, match="3 problems") as caught:
        tables.load(volumes={"device": "maestro", "region": "disc"})
    assert "the split 'train' has no patient with a file" in str(caught.value)


def test_all_problems_at_once(tables: Tables) -> None:
    tables.people.loc[0, "study_group"] = "sick"
    tables.people.loc[1, "recommended_split"] = "hold-out"
    tables.people.loc[2, "participant_id"] = "01000"
    tables.manifest.loc[0, "participant_id"] = "P1007"
    with pytest.raises(SampleError, match="5 problems") as caught:
        tables.load(volumes={"eye": "L"})
    for part in ("unknown label 'sick'", "got 'hold-out'", "differ only in spelling", "P1007", "no column 'eye'"):
        assert part in str(caught.value)


def test_missing_columns_are_told_together(tables: Tables) -> None:
    with pytest.raises(SampleError, match="3 problems") as caught:
        tables.load(label="group", split="fold", classes=["one"])
    for part in ("no column 'group' for labels", "no column 'fold' for splits", "classes must be two or more"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.drop(columns="filepath"), "no column 'filepath' for paths"),
        (lambda m: m.drop(columns="participant_id"), "no column 'participant_id' for patients"),
        (lambda m: m.assign(filepath=m["filepath"].mask(m.index == 1, "")), "lines 3 have no filepath"),
        (lambda m: m.assign(filepath=m["filepath"].mask(m.index == 1, "/../../x")), "lines 3: the path leads out"),
    ],
)
def test_bad_manifest(tables: Tables, spoil: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    tables.manifest = spoil(tables.manifest)
    with pytest.raises(SampleError, match=message):
        tables.load()


def test_real_scale_is_quick(tmp_path: Path) -> None:
    """1,061 participants and 24,750 volumes; the goal is about a second on an idle machine."""
    tables = Tables(tmp_path, people_frame(1061))
    copies = [tables.manifest.assign(filepath=tables.manifest["filepath"] + f".{n}", sop_instance_uid=f"{n}." + tables.manifest["sop_instance_uid"]) for n in range(6)]  # fmt: skip  # noqa: E501
    tables.manifest = pd.concat(copies, ignore_index=True).head(24_750)
    tables.listing = listing_of(tables.manifest)
    tables.people.to_csv(tmp_path / "participants.tsv", sep="\t", index=False)
    cohort = tables.load(domains=["clinical_site", "device"])
    start = time.process_time()
    cohort = tables.load(domains=["clinical_site", "device"])
    seconds = time.process_time() - start
    assert len(cohort.samples) == 24_750
    assert seconds < 2.5  # writing the two tables included
