"""A study whose table, checkpoints and volumes lie in an S3 bucket, served by a real server process."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohorts import study_values, write_cohort

from s3_server import boto_client, running_s3_server, use_test_keys
from vitreous.config.compose import validate_study
from vitreous.core.errors import LocationError
from vitreous.encoders.catalog import load_encoder
from vitreous.study.run import run_study


def test_a_study_in_a_bucket_equals_the_same_study_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_keys(monkeypatch, str(tmp_path))
    monkeypatch.setenv("VITREOUS_ID_KEY", str(tmp_path / "id_key"))
    root = write_cohort(tmp_path / "cohort")
    on_disk = run_study(validate_study(study_values(root)))
    with running_s3_server() as url:
        client = boto_client(url)
        client.create_bucket(Bucket="eye")
        for path in sorted(root.rglob("*")):
            if path.suffix in (".npy", ".tsv", ".safetensors"):
                client.upload_file(str(path), "eye", f"cohort/{path.relative_to(root)}")
        values = study_values(root)
        values["data"] |= {"table": "s3://eye/cohort/participants.tsv", "files": "s3://eye/cohort"}
        for name, file in (("first", "a"), ("second", "b")):
            values["encoders"][name]["checkpoint"] = f"s3://eye/cohort/checkpoints/{file}.safetensors"
        values |= {"s3": {"endpoint": url}, "runs": str(tmp_path / "runs"), "store": str(tmp_path / "features")}
        in_bucket = run_study(validate_study(values))
        monkeypatch.setenv("S3_ENDPOINT_URL", url)
        loaded = load_encoder("s3://eye/cohort/checkpoints/a.safetensors", "vit3d")
        local = load_encoder(root / "checkpoints" / "a.safetensors", "vit3d")
        assert loaded.weights_hash == local.weights_hash
        wrong = values["data"] | {"files": "s3://eyes/cohort"}
        with pytest.raises(LocationError, match="eyes"):
            run_study(validate_study(values | {"data": wrong, "name": "wrong"}))
    pd.testing.assert_frame_equal(in_bucket.leaderboard, on_disk.leaderboard)
    for head in ("first/linear/seed0", "second/linear/seed1"):
        ours, theirs = (
            pd.read_parquet(result.run_dir / head / "test_preds_patient.parquet") for result in (in_bucket, on_disk)
        )
        np.testing.assert_array_equal(ours.filter(like="prob_"), theirs.filter(like="prob_"))
