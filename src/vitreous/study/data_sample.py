"""`vitreous data sample DIR`: a small synthetic cohort, with study files that run on it as they are.

| cohort | files |
|---|---|
| fundus | cameras/a/, cameras/b/, cameras/both.csv, camera_a.yaml, camera_b.yaml, transfer.yaml |
| oct | cohort/, checkpoints/, oct.yaml |
| surgical | videos/, vjepa2_small.safetensors, cvs_experiments.yaml, cvs_clean_labels.yaml |
"""

import csv
import io
from importlib import resources
from pathlib import Path
from typing import Any, Literal, assert_never

import yaml
from rich.console import Console

from vitreous.core.errors import UserError
from vitreous.core.files import write_bytes, write_text
from vitreous.core.progress import progress_bar
from vitreous.demo.cohort import write_cohort
from vitreous.demo.flaws import plan_cohort
from vitreous.demo.fundus_cohort import IMAGES, TABLE, FundusFlaws, plan_fundus_cohort, write_fundus_cohort
from vitreous.demo.recipe import CohortRecipe
from vitreous.demo.surgical_cohort import FRAMES, FRAMES_PER_VIDEO, MASKS, write_surgical_cohort
from vitreous.samples.public_cohorts import GRADES
from vitreous.study.demo import CHECKPOINTS

CohortName = Literal["fundus", "oct", "surgical"]
_FOLDER_OF: dict[CohortName, str] = {"fundus": "cameras", "oct": "cohort", "surgical": "videos"}
FEWEST_PATIENTS = 40  # fewer leave a split without one of the grades
_SIZE_PX = 256
_CAMERAS: tuple[Literal["a", "b"], ...] = ("a", "b")
_ENCODER = {"family": "timm", "random": {"model": "resnet10t"}, "input": {"size": [128, 128]}}
_PROBE = {
    "kind": "linear_probe",
    "epochs": 30,
    "class_weights": "balanced",
    "grid": {"lr": [1e-3, 1e-2], "weight_decay": [0.0, 1e-2]},
}
_PATIENTS_NOTE = (
    "# no `patient`: the eyes of one person may have different grades, and metrics go by patient. The split keeps\n"
    "# both eyes together; intervals take photographs for independent and are somewhat too narrow.\n"
)


def write_sample(out: Path, cohort: CohortName, *, patients: int, seed: int) -> list[Path]:
    """Write cohort and study files, or what of them is still missing.

    Args:
        out: a new or empty folder, or one in which the same call has begun.
        patients: of each camera, of the OCT cohort, or videos.
    Returns:
        The study files.
    Raises:
        UserError: too few patients, or `out` holds something else.
    """
    out = out.expanduser().resolve()
    if patients < FEWEST_PATIENTS:
        raise UserError(
            f"--patients {patients}: at least {FEWEST_PATIENTS} are needed for every grade to stand in every split."
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder.")
    for name, folder in _FOLDER_OF.items():
        if name != cohort and (out / folder).exists():
            raise UserError(f"{out}: holds a sample of the other kind ({folder}/); name another folder.")
    match cohort:
        case "fundus":
            return _write_fundus(out, patients, seed)
        case "oct":
            return _write_oct(out, patients, seed)
        case "surgical":
            return _write_surgical(out, patients, seed)
    assert_never(cohort)


def print_sample(out: Path, cohort: CohortName, *, patients: int, seed: int) -> None:
    """Write a sample and say what to run."""
    studies = write_sample(out, cohort, patients=patients, seed=seed)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for study in studies:
        console.print(f"study  {study}")
    console.print(f"next   vitreous data verify {studies[0]}")
    console.print(f"       vitreous run {studies[0]}")


def _write_fundus(out: Path, patients: int, seed: int) -> list[Path]:
    studies, rows = [], []
    for camera in _CAMERAS:
        planned = plan_fundus_cohort(num_patients=patients, seed=seed, camera=camera, strength=1.0, flaws=FundusFlaws())
        with progress_bar(f"Photographs of camera {camera}", len(planned)) as advance:
            table = write_fundus_cohort(
                out / "cameras" / camera,
                num_patients=patients,
                seed=seed,
                camera=camera,
                size_px=_SIZE_PX,
                progress=advance,
            )
        data = _table_data(table, table.parent / IMAGES, "id_code", [])
        studies.append(
            _write_study(
                out / f"camera_{camera}.yaml",
                f"# Synthetic fundus photographs of camera {camera}, five grades; see docs/data.md.\n" + _PATIENTS_NOTE,
                f"camera_{camera}",
                data,
            )
        )
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                rows.append({"image": f"{camera}/{IMAGES}/{row['id_code']}", **row})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    both = out / "cameras" / "both.csv"
    write_text(both, text.getvalue())
    head = (
        "# Both cameras in one study, the camera as a domain. For the gap between them, a model of one camera on the\n"
        "# photographs of the other:\n"
        f"#   vitreous run {out / 'camera_a.yaml'}\n"
        f"#   vitreous transfer {out / 'runs' / 'camera_a'} --on "
        f"camera_b:{out / 'cameras' / 'b' / TABLE}:{out / 'cameras' / 'b' / IMAGES}\n"
    )
    data = _table_data(both, both.parent, "image", ["camera"])
    studies.append(_write_study(out / "transfer.yaml", head + _PATIENTS_NOTE, "both_cameras", data))
    return studies


def _table_data(table: Path, files: Path, image: str, domains: list[str]) -> dict[str, Any]:
    return {
        "kind": "csv",
        "table": str(table),
        "files": str(files),
        "image": image,
        "label": "diagnosis",
        "classes": list(GRADES),
        "label_map": dict(enumerate(GRADES)),
        "split": "split",
        **({"domains": domains} if domains else {}),
    }


def _write_study(path: Path, head: str, name: str, data: dict[str, Any]) -> Path:
    values = {
        "name": name,
        "data": data,
        "encoders": {"untrained_cnn": _ENCODER},
        "recipes": {"linear": _PROBE},
        "floors": ["majority"],
        "precision": "fp32",  # the same numbers whether or not the CPU multiplies bf16
    }
    return _write_yaml(path, head, values | _places(path.parent))


def _write_oct(out: Path, patients: int, seed: int) -> list[Path]:
    recipe = CohortRecipe(participants=patients, seed=seed)
    with progress_bar("OCT volumes", len(plan_cohort(recipe).orders)) as advance:
        files = write_cohort(out / "cohort", recipe, advance)
    packaged = yaml.safe_load((resources.files("vitreous.studies") / "demo.yaml").read_text(encoding="utf-8"))
    for name in CHECKPOINTS:
        content = (resources.files("vitreous.demo") / "checkpoints" / f"{name}.safetensors").read_bytes()
        target = out / "checkpoints" / f"{name}.safetensors"
        if not target.exists() or target.read_bytes() != content:
            write_bytes(target, content)
        packaged["encoders"][name]["checkpoint"] = str(target)
    packaged["data"] |= {"table": str(files.participants), "files": str(files.root), "manifest": str(files.manifest)}
    head = "# Synthetic OCT volumes in DICOM, four study groups; see docs/synthetic_cohort.md.\n"
    return [_write_yaml(out / "oct.yaml", head, packaged | {"name": "oct"} | _places(out))]


def _write_surgical(out: Path, videos: int, seed: int) -> list[Path]:
    with progress_bar("Frames", videos * FRAMES_PER_VIDEO) as advance:
        table = write_surgical_cohort(
            out / "videos", num_videos=videos, seed=seed, frames_per_video=FRAMES_PER_VIDEO, progress=advance
        )
    weights = out / "vjepa2_small.safetensors"
    content = (resources.files("vitreous.demo") / "checkpoints" / "surgical_vjepa2.safetensors").read_bytes()
    if not weights.exists() or weights.read_bytes() != content:
        write_bytes(weights, content)
    head = "# Synthetic surgical video, three criteria; see docs/synthetic_surgical.md.\n"
    studies = []
    for name in ("cvs_experiments", "cvs_clean_labels"):
        values = yaml.safe_load((resources.files("vitreous.studies") / f"{name}.yaml").read_text(encoding="utf-8"))
        folder = table.parent
        values["data"] |= {
            "table": str(table),
            "files": str(folder / FRAMES),
            "split": {split: str(folder / f"{split}_vids.txt") for split in ("train", "val", "test")},
        }
        if "masks" in values["data"]:
            values["data"]["masks"]["files"] = str(folder / MASKS)
        values["encoders"]["vjepa2"]["checkpoint"] = str(weights)
        studies.append(_write_yaml(out / f"{name}.yaml", head, values | _places(out)))
    return studies


def _places(out: Path) -> dict[str, Any]:
    return {"runs": str(out / "runs"), "store": str(out / "features"), "cache": {"dir": str(out / "files")}}


def _write_yaml(path: Path, head: str, values: dict[str, Any]) -> Path:
    text = head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{path}: differs from what would be written; rename yours, or remove it first.")
    write_text(path, text)
    return path
