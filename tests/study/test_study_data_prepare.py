"""`data prepare`: published layouts in, one layout out; unsafe and foreign archives refused."""

import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import yaml
from cohorts import write_study
from PIL import Image

from vitreous.config.compose import load_study
from vitreous.core.errors import UserError
from vitreous.samples import archives
from vitreous.samples.archives import open_archive
from vitreous.study import data_prepare
from vitreous.study.data import open_data
from vitreous.study.data_prepare import prepare_cohort

IDRID = Path(__file__).parents[3] / "shared" / "data" / "idrid"


def photograph(seed: int, kind: str = "PNG") -> bytes:
    packed = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)).save(packed, kind)
    return packed.getvalue()


def aptos(num_images: int = 40) -> dict[str, bytes]:
    rows = "".join(f"id{number:02d},{number % 5}\n" for number in range(num_images))
    files = {"train.csv": f"id_code,diagnosis\n{rows}".encode(), "test.csv": b"id_code\nxx1\nxx2\n"}
    files |= {f"train_images/id{number:02d}.png": photograph(number) for number in range(num_images)}
    return files | {f"test_images/xx{number}.png": photograph(900 + number) for number in (1, 2)}


def messidor(num_images: int = 40, *, pairs: bool = True) -> dict[str, bytes]:
    """Two images an examination, grades as floats as published, one ungradable; the table says .jpg, files .JPG."""
    names = [f"2005_{number:02d}_PP.png" if number % 2 else f"IM{number:04d}.jpg" for number in range(num_images)]
    rows = [f"{name},{number % 5}.0,{number % 2}.0,1" for number, name in enumerate(names)]
    rows[7] = f"{names[7]},,,0"
    files = {
        "messidor_data.csv": "\n".join(["image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable", *rows])
    }
    if pairs:
        files["messidor-2.csv"] = "\n".join(["left;right", *(f"{a};{b}" for a, b in zip(names[::2], names[1::2]))])
    packed = {name: text.encode() for name, text in files.items()}
    for number, name in enumerate(names):
        kind = "PNG" if name.endswith("png") else "JPEG"
        packed[f"IMAGES/{name.replace('.jpg', '.JPG')}"] = photograph(number, kind)
    return packed


def idrid() -> dict[str, bytes]:
    """The names in train and test are the same, as published; other parts of the release lie beside."""
    part = "B. Disease Grading"
    head = "Image name,Retinopathy grade,Risk of macular edema "
    files = {}
    for letter, split, count in (("a", "Training", 40), ("b", "Testing", 10)):
        rows = "".join(f"IDRiD_{n:03d},{n % 5},{n % 3},,,,,\r\n" for n in range(1, count + 1))
        files[f"{part}/2. Groundtruths/{letter}. IDRiD_Disease Grading_{split} Labels.csv"] = (
            f"{head},,,,,\r\n{rows}".encode()
        )
        for n in range(1, count + 1):
            seed = n + 1000 * (letter == "b")
            files[f"{part}/1. Original Images/{letter}. {split} Set/IDRiD_{n:03d}.jpg"] = photograph(seed, "JPEG")
        files[f"A. Segmentation/1. Original Images/{letter}. {split} Set/IDRiD_001.jpg"] = photograph(7, "JPEG")
    return files | {"__MACOSX/._x.csv": b"\0", ".DS_Store": b"\0"}


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_aptos_zip(tmp_path: Path) -> None:
    files = aptos()
    record, was_there = prepare_cohort("aptos", write_zip(tmp_path / "a.zip", files), tmp_path / "out")
    assert not was_there
    labels = pd.read_csv(tmp_path / "out" / "labels.csv", dtype=str)
    assert list(labels.columns) == ["image", "grade", "split"]
    assert labels.set_index("image")["grade"].to_dict() == {f"id{n:02d}.png": str(n % 5) for n in range(40)}
    for n in range(40):
        assert (tmp_path / "out" / "images" / f"id{n:02d}.png").read_bytes() == files[f"train_images/id{n:02d}.png"]
    assert record["left_out"] == {"test image without a published grade": 2}
    assert {split: sum(counts.values()) for split, counts in record["counts"].items()} == {
        "train": 30,
        "val": 5,
        "test": 5,
    }
    data = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["data"]
    assert data["label_map"][4] == "proliferative"
    assert "patient" not in data
    readme = (tmp_path / "out" / "README.md").read_text()
    for text in ("APTOS 2019", "Licence: the rules of the competition", "2: test image without", "no patients"):
        assert text in readme
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "tar.xz", "folder", "folder in a folder"])
def test_every_form_gives_the_same_bytes(tmp_path: Path, form: str) -> None:
    files = messidor()
    match form:
        case "zip":
            source = write_zip(tmp_path / "archive", files)  # the content decides, not the name
        case "folder":
            source = write_folder(tmp_path / "archive", files)
        case "folder in a folder":
            source = write_folder(tmp_path / "archive", {f"messidor-2/{name}": data for name, data in files.items()})
        case _:
            source = write_tar(tmp_path / "archive", files, {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[form])
    out = tmp_path / "out"
    prepare_cohort("messidor", source, out)
    labels = pd.read_csv(out / "labels.csv", dtype=str)
    assert len(labels) == 39
    assert (labels.groupby("patient")["split"].nunique() == 1).all()
    assert labels["patient"].nunique() == 20
    assert labels.set_index("image").loc["IM0002.jpg", ["grade", "macular_edema"]].tolist() == ["2", "0"]
    assert (out / "images" / "IM0002.jpg").read_bytes() == files["IMAGES/IM0002.JPG"]
    left_out = pd.read_csv(out / "left_out.csv")
    assert left_out["rule"].tolist() == ["ungradable"]
    # both eyes of a person have grades of their own here, and metrics go by patient
    assert "patient" not in yaml.safe_load((out / "data.yaml").read_text())["data"]
    assert "# no `patient`" in (out / "data.yaml").read_text()


def test_messidor_without_pairs_says_that_patients_are_unknown(tmp_path: Path) -> None:
    record, _ = prepare_cohort("messidor", write_zip(tmp_path / "m.zip", messidor(pairs=False)), tmp_path / "out")
    assert "patient" not in pd.read_csv(tmp_path / "out" / "labels.csv").columns
    assert any("both eyes of one may stand in two splits" in note for note in record["notes"])


def test_idrid_keeps_the_people_of_train_and_test_apart(tmp_path: Path) -> None:
    files = idrid()
    record, _ = prepare_cohort("idrid", write_zip(tmp_path / "i.zip", files), tmp_path / "out")
    labels = pd.read_csv(tmp_path / "out" / "labels.csv", dtype=str)
    assert len(labels) == 50
    assert (labels["split"] == "test").sum() == 10
    assert (labels.loc[labels["image"].str.startswith("test/"), "split"] == "test").all()
    train = labels[labels["published_split"] == "train"]
    assert train["split"].value_counts().to_dict() == {"train": 35, "val": 5}
    for split, folder in (("train", "a. Training Set"), ("test", "b. Testing Set")):
        written = (tmp_path / "out" / "images" / split / "IDRiD_001.jpg").read_bytes()
        assert written == files[f"B. Disease Grading/1. Original Images/{folder}/IDRiD_001.jpg"]
    assert record["licence"] == "CC BY 4.0"
    again, _ = prepare_cohort("idrid", tmp_path / "i.zip", tmp_path / "other", seed=1)
    assert again["counts"] == record["counts"]
    other = pd.read_csv(tmp_path / "other" / "labels.csv", dtype=str)
    assert (other["split"] != labels["split"]).any(), "another seed draws another val"


@pytest.mark.parametrize("name", ["aptos", "messidor", "idrid"])
def test_the_data_part_opens_as_a_study(tmp_path: Path, name: Literal["aptos", "messidor", "idrid"]) -> None:
    files = {"aptos": aptos, "messidor": lambda: messidor(100), "idrid": idrid}[name]()
    if name == "messidor":  # both eyes of one grade, so that patients can be told to the study
        head, *rows = files["messidor_data.csv"].decode().splitlines()
        rows = [",".join([row.split(",")[0], f"{n // 2 % 5}", "0", "1"]) for n, row in enumerate(rows)]
        files["messidor_data.csv"] = "\n".join([head, *rows]).encode()
    record, _ = prepare_cohort(name, write_zip(tmp_path / "a.zip", files), tmp_path / "out")
    values = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert ("patient" in values["data"]) == (name == "messidor")
    encoder = {"family": "vit3d", "random": {"img_size": [4, 32, 32], "patch_size": [2, 16, 16], "embed_dim": 64}}
    values |= {"name": name, "encoders": {"untrained": encoder}, "recipes": {"linear": {"kind": "linear_probe"}}}
    study = write_study(tmp_path / "study.yaml", values | {"cache": {"dir": str(tmp_path / "cache")}})
    cohort = open_data(load_study(str(study)), keep_listing=False).cohort
    assert cohort.excluded.empty
    counts = cohort.count_by(["split", "class"]).set_index(["split", "class"])["volumes"].to_dict()
    assert counts == {
        (split, grade): count for split, row in record["counts"].items() for grade, count in row.items() if count
    }


def test_two_at_a_time(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "a.zip", aptos())
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(prepare_cohort, "aptos", source, tmp_path / "out") for _ in range(4)]
        results = [call.result() for call in calls]
    assert [was_there for _, was_there in results].count(False) == 1
    assert all(record == results[0][0] for record, _ in results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]


def test_same_command_finds_it_done_and_other_settings_are_refused(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "a.zip", aptos())
    prepare_cohort("aptos", source, tmp_path / "out")
    before = tree(tmp_path / "out")
    assert prepare_cohort("aptos", source, tmp_path / "out")[1]
    assert tree(tmp_path / "out") == before
    with pytest.raises(UserError, match="prepared with another 'seed'"):
        prepare_cohort("aptos", source, tmp_path / "out", seed=1)
    with pytest.raises(UserError, match="prepared with another 'content'"):
        prepare_cohort("aptos", write_zip(tmp_path / "b.zip", aptos(41)), tmp_path / "out")
    (tmp_path / "out" / "images" / "id03.png").unlink()
    with pytest.raises(UserError, match="1 images have gone since"):
        prepare_cohort("aptos", source, tmp_path / "out")


def test_killed_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_zip(tmp_path / "a.zip", aptos())
    prepare_cohort("aptos", source, tmp_path / "undisturbed")
    written: list[str] = []
    copy = archives.Archive._copy

    def dies(self: archives.Archive, member: archives.Member, *rest: object) -> None:
        if len(written) == 11:
            raise KeyboardInterrupt
        written.append(member.name)
        copy(self, member, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(archives.Archive, "_copy", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare_cohort("aptos", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # what a SIGKILL in the middle of a file leaves
    (tmp_path / ".out.preparing" / "images" / ".id11.png.x1y2.part").write_bytes(b"half")
    monkeypatch.setattr(
        archives.Archive, "_copy", lambda self, member, *rest: (written.append(member.name), copy(self, member, *rest))
    )
    prepare_cohort("aptos", source, tmp_path / "out")
    assert len(written) == len(set(written)) == 40, "no image was written twice"
    ours, theirs = tree(tmp_path / "out"), tree(tmp_path / "undisturbed")
    assert ours.pop("data.yaml").replace(b"/out/", b"/undisturbed/") == theirs.pop("data.yaml")
    assert ours == theirs


def test_what_another_call_left_unfinished_is_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prepare, "_complete", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare_cohort("aptos", write_zip(tmp_path / "a.zip", aptos()), tmp_path / "out")
    monkeypatch.undo()
    prepare_cohort("idrid", write_zip(tmp_path / "i.zip", idrid()), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["test", "train"]


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "a.zip", aptos())
    (tmp_path / "out").mkdir()
    prepare_cohort("aptos", source, tmp_path / "out")  # empty: taken
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        prepare_cohort("aptos", source, tmp_path / "mine")
    assert tree(tmp_path / "mine") == {"thesis.tex": b"x"}
    folder = write_folder(tmp_path / "unpacked", aptos())
    with pytest.raises(UserError, match="name a folder elsewhere"):
        prepare_cohort("aptos", folder, folder / "prepared")


def test_missing_and_unreadable_images(tmp_path: Path) -> None:
    files = aptos()
    del files["train_images/id05.png"]
    files["train_images/id06.png"] = files["train_images/id06.png"][:80]
    files["train_images/extra.png"] = photograph(5)
    source = write_zip(tmp_path / "a.zip", files)
    record, _ = prepare_cohort("aptos", source, tmp_path / "out")  # 2 of 40 is just allowed
    assert record["images"] == 38
    assert record["left_out"]["image missing"] == 1
    assert record["left_out"]["image cannot be read"] == 1
    assert record["left_out"]["image without a grade"] == 1
    left_out = pd.read_csv(tmp_path / "out" / "left_out.csv").set_index("name")
    assert "truncated" in left_out.loc["id06.png", "detail"]
    assert not (tmp_path / "out" / "images" / "id06.png").exists()
    with pytest.raises(UserError, match=r"2 of 40 labelled images are missing \(1\) or cannot be read \(1\)"):
        prepare_cohort("aptos", source, tmp_path / "strict", max_missing=0.01)
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize(
    ("asked", "files", "message"),
    [
        ("aptos", idrid(), r"is no APTOS 2019.*Looked for train\.csv.*found 52 \.jpg, 2 \.csv.*prepare idrid"),
        ("idrid", messidor(), r"is no IDRiD.*It looks like Messidor-2"),
        ("messidor", aptos(), r"is no Messidor-2.*It looks like APTOS"),
        ("messidor", {"images.zip": b"PK", "a.txt": b""}, r"It holds archives \('images\.zip'\): unpack them"),
        ("idrid", {"a.txt": b""}, r"found 1 \.txt; e\.g\. 'a\.txt'"),
    ],
)
def test_another_archive(tmp_path: Path, asked: str, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_cohort(asked, write_zip(tmp_path / "x.zip", files), tmp_path / "out")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"id_code,grade\nid00,1\n", r"no column 'diagnosis'"),
        (b"id_code,diagnosis\nid00,5\n", r"grades are not 0 to 4: 'id00\.png: 5'"),
        (b"id_code,diagnosis\nid00,2\nid00,3\n", r"stand twice in the table"),
        (b"id_code,diagnosis\nid00,2,9\n", r"do not have the 2 fields"),
        (b"id_code,diagnosis\nother,2\n", r"none of the 1 images of the table is there"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, table: bytes, message: str) -> None:
    source = write_zip(tmp_path / "a.zip", aptos() | {"train.csv": table})
    with pytest.raises(UserError, match=message):
        prepare_cohort("aptos", source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil.png", "leads out"),
        ("a/../../evil.png", "leads out"),
        ("/etc/evil.png", "absolute"),
        ("C:\\evil.png", "absolute"),
        ("..\\evil.png", "leads out"),
        ("train_images/ID01.PNG", "one file where names do not tell"),
        ("train_images/e\x07vil.png", "control character"),
    ],
)
def test_names_that_are_not_safe(tmp_path: Path, name: str, message: str) -> None:
    files = aptos() | {name: photograph(1)}
    for source in (write_zip(tmp_path / "a.zip", files), write_tar_raw(tmp_path / "a.tar", files)):
        with pytest.raises(UserError, match=message):
            prepare_cohort("aptos", source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.zip"]


def write_tar_raw(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_links_are_refused(tmp_path: Path) -> None:
    linked = zipfile.ZipInfo("train_images/link.png")
    linked.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(write_zip(tmp_path / "a.zip", aptos()), "a") as archive:
        archive.writestr(linked, "/etc/passwd")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        link = tarfile.TarInfo("train_images/link.png")
        link.type, link.linkname = kind, "/etc/passwd"
        with tarfile.open(write_tar_raw(tmp_path / f"a{kind!r}.tar", aptos()), "a") as tar:
            tar.addfile(link)
    folder = write_folder(tmp_path / "folder", aptos())
    (folder / "train_images" / "link.png").symlink_to("/etc/passwd")
    for source in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError, match="link or no plain file"):
            prepare_cohort("aptos", source, tmp_path / "out")


def test_encrypted_zip(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "a.zip", aptos())
    content = bytearray(source.read_bytes())
    entry = content.find(b"PK\x01\x02")  # the first entry of the central directory; its flags stand 8 bytes on
    content[entry + 8] |= 1
    source.write_bytes(bytes(content))
    with pytest.raises(UserError, match="is encrypted"):
        prepare_cohort("aptos", source, tmp_path / "out")


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = aptos() | {"train_images/zeros.png": bytes(8 * 2**20)}
    monkeypatch.setattr(archives, "_RATIO_COUNTS_FROM", 2**20)
    for source in (write_zip(tmp_path / "a.zip", files), write_tar(tmp_path / "a.tar.gz", files)):
        with pytest.raises(UserError, match="more than 100 times"):
            prepare_cohort("aptos", source, tmp_path / "out")
        with pytest.raises(UserError, match=r"unpacks to more than 1,000,000 bytes.*--max-gb"):
            prepare_cohort("aptos", source, tmp_path / "out", max_gb=0.001)


def test_a_header_that_asks_for_gigabytes(tmp_path: Path) -> None:
    forged = tarfile.TarInfo("x")
    forged.type, forged.size = tarfile.XHDTYPE, 7 * 2**30
    (tmp_path / "a.tar").write_bytes(forged.tobuf(tarfile.USTAR_FORMAT) + bytes(10240))
    with pytest.raises(UserError, match=r"damaged|neither"):
        prepare_cohort("aptos", tmp_path / "a.tar", tmp_path / "out")


def test_a_size_that_lies(tmp_path: Path) -> None:
    source = write_zip(
        tmp_path / "a.zip", {"train.csv": b"id_code,diagnosis\na,1\n", "train_images/a.png": photograph(1)}
    )
    content = bytearray(source.read_bytes())
    entry = content.find(b"PK\x01\x02", content.find(b"PK\x01\x02") + 4)
    content[entry + 24 : entry + 28] = (len(photograph(1)) + 50).to_bytes(4, "little")
    source.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged"):
        prepare_cohort("aptos", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("form", ["a.zip", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_a_download_that_broke_off(tmp_path: Path, form: str, cut: float) -> None:
    if form == "a.zip":
        source = write_zip(tmp_path / form, aptos())
    else:
        source = write_tar(tmp_path / form, aptos(), f"w:{form.rpartition('.')[2]}")
    source.write_bytes(source.read_bytes()[: int(source.stat().st_size * cut)])
    with pytest.raises(UserError, match=r"damaged|neither a zip nor a tar"):
        prepare_cohort("aptos", source, tmp_path / "out")


def test_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("<html>please log in</html>")
    with pytest.raises(UserError, match="neither a zip nor a tar"):
        prepare_cohort("aptos", tmp_path / "a.zip", tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"), open_archive(tmp_path / "b.zip", max_bytes=10**9):
        pass


@pytest.mark.real
@pytest.mark.skipif(not IDRID.is_dir(), reason=f"needs {IDRID}")
def test_idrid_as_reduced(tmp_path: Path) -> None:
    record, _ = prepare_cohort("idrid", IDRID, tmp_path / "out")
    assert list(record["counts"]["test"].values()) == [34, 5, 32, 19, 13]
    both = [record["counts"]["train"][grade] + record["counts"]["val"][grade] for grade in record["counts"]["train"]]
    assert both == [134, 20, 136, 74, 49]
    assert record["left_out"] == {}
    assert json.loads((tmp_path / "out" / "prepare.json").read_text()) == record
