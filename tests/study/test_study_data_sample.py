"""`data sample`: study files that open as they are; what is planted in such a cohort is found by `data verify`."""

from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
from cohorts import contents

from vitreous.config.compose import load_study
from vitreous.core.errors import UserError
from vitreous.demo.fundus_cohort import FundusFlaws, plan_fundus_cohort, write_fundus_cohort
from vitreous.study import data_sample
from vitreous.study.data import open_data
from vitreous.study.data_sample import write_sample
from vitreous.study.data_verify import verify_data


@pytest.fixture(autouse=True)
def _small_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sample, "_SIZE_PX", 64)


def test_fundus(tmp_path: Path) -> None:
    out = tmp_path / "sample"
    studies = write_sample(out, "fundus", patients=40, seed=0)
    assert [study.name for study in studies] == ["camera_a.yaml", "camera_b.yaml", "transfer.yaml"]
    opened = {study.stem: open_data(load_study(str(study)), keep_listing=False) for study in studies}
    assert {data.modality for data in opened.values()} == {"image"}
    assert all(data.cohort.excluded.empty for data in opened.values())
    both = opened["transfer"].cohort
    assert both.domains == ("camera",)
    assert len(both.samples) == len(opened["camera_a"].cohort.samples) + len(opened["camera_b"].cohort.samples)
    assert both.samples["camera"].value_counts().to_dict() == {
        name[-1]: len(opened[name].cohort.samples) for name in ("camera_a", "camera_b")
    }
    table = pd.read_csv(out / "cameras" / "both.csv", dtype=str)
    assert (table.groupby("patient_id")["split"].nunique() == 1).all(), "both eyes stand in one split"
    before = contents(out, "*")
    assert write_sample(out, "fundus", patients=40, seed=0) == studies
    assert contents(out, "*") == before
    config = load_study(str(out / "transfer.yaml"), [f"store={tmp_path / 'features'}"])
    found = verify_data(config, opened["transfer"], workers=2)
    assert [finding for finding in found.findings if finding.severity == "error"] == []
    by_camera = found.statistics.set_index(["column", "value", "statistic"])["mean"]
    assert by_camera["camera", "b", "mean_b"] > by_camera["camera", "a", "mean_b"], "camera b is the bluer one"


@pytest.mark.parametrize("camera", ["a", "b"])
def test_the_fewest_patients_fill_every_split(camera: Literal["a", "b"]) -> None:
    for seed in range(20):
        rows = plan_fundus_cohort(
            num_patients=data_sample.FEWEST_PATIENTS, seed=seed, camera=camera, strength=1.0, flaws=FundusFlaws()
        )
        assert len({(row.split, row.grade) for row in rows}) == 15


def test_surgical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sample, "FRAMES_PER_VIDEO", 10)
    studies = write_sample(tmp_path / "sample", "surgical", patients=40, seed=0)
    assert [study.name for study in studies] == ["cvs_experiments.yaml", "cvs_clean_labels.yaml"]
    configs = {study.stem: load_study(str(study)) for study in studies}
    opened = {name: open_data(config, keep_listing=False) for name, config in configs.items()}
    assert {data.modality for data in opened.values()} == {"clip"}
    assert opened["cvs_experiments"].masks is not None
    assert set(opened["cvs_clean_labels"].cohort.excluded["rule"]) >= {"labels differ"}
    assert all(Path(str(config.encoders["vjepa2"].checkpoint)).is_file() for config in configs.values())
    assert write_sample(tmp_path / "sample", "surgical", patients=40, seed=0) == studies
    with pytest.raises(UserError, match=r"holds a sample of the other kind \(videos/\)"):
        write_sample(tmp_path / "sample", "fundus", patients=40, seed=0)


@pytest.mark.slow
def test_oct(tmp_path: Path) -> None:
    (study,) = write_sample(tmp_path / "sample", "oct", patients=40, seed=3)
    config = load_study(str(study))
    data = open_data(config, keep_listing=False)
    assert data.modality == "volume"
    assert data.cohort.samples["patient_id"].nunique() > 30
    assert all(Path(encoder.checkpoint or "").is_file() for encoder in config.encoders.values())
    assert len(data.cohort.count_by(["split", "class"])) == 12


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 40"):
        write_sample(tmp_path / "a", "fundus", patients=39, seed=0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        write_sample(tmp_path / "file", "fundus", patients=40, seed=0)
    (tmp_path / "other" / "cohort").mkdir(parents=True)
    with pytest.raises(UserError, match="other kind"):
        write_sample(tmp_path / "other", "fundus", patients=40, seed=0)
    write_sample(tmp_path / "mine", "fundus", patients=40, seed=0)
    with pytest.raises(UserError, match="differs in seed"):
        write_sample(tmp_path / "mine", "fundus", patients=40, seed=1)
    study = tmp_path / "mine" / "camera_a.yaml"
    study.write_text(study.read_text().replace("epochs: 30", "epochs: 60"))
    with pytest.raises(UserError, match="differs from what would be written"):
        write_sample(tmp_path / "mine", "fundus", patients=40, seed=0)
    assert "epochs: 60" in study.read_text()


def test_planted_flaws_are_found(tmp_path: Path) -> None:
    flaws = FundusFlaws(missing=1, truncated=1, duplicates=2, near_duplicates=2)
    table = write_fundus_cohort(tmp_path / "c", num_patients=40, seed=5, camera="b", size_px=256, flaws=flaws)
    values = data_sample._table_data(table, table.parent / "train_images", "id_code", [])
    study = data_sample._write_study(tmp_path / "study.yaml", "", "flawed", values)
    config = load_study(str(study), [f"store={tmp_path / 'features'}"])
    found = verify_data(config, open_data(config, keep_listing=False), workers=2)
    truth = pd.read_csv(table.parent / "ground_truth.csv", dtype=str).fillna("").set_index("id_code")
    codes = {finding.code for finding in found.findings if finding.severity == "error"}
    assert codes == {"missing_files", "unreadable", "exact_duplicates", "near_duplicates"}
    assert {name.partition(".")[0] for name in found.unreadable["sample_id"]} == set(
        truth.index[truth["flaw"] == "truncated"]
    )
    for kind, flaw in (("exact", "duplicate"), ("near", "near_duplicate")):
        pairs = found.duplicates[found.duplicates["kind"] == kind]
        named = {frozenset(n.partition(".")[0] for n in pair) for pair in zip(pairs["first"], pairs["second"])}
        planted = truth[truth["flaw"] == flaw]
        assert named == {frozenset(pair) for pair in zip(planted.index, planted["source"])}
