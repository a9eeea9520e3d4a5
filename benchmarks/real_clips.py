"""The 44 real lung-ultrasound clips of POCUS through decoding, token cache, attentive probe and attention maps.

    python benchmarks/real_clips.py --data ../shared/data/pocus --out build/real_clips

A small V-JEPA 2 is made on the spot from random weights: it is **not pretrained**, and with 14 patients this is no
benchmark. It shows that files of three containers, 104 to 495 frames, go through every step and that all are accounted
for: encoded, quarantined or excluded. Regular lungs against all others; patients, not clips, are split.

Hardware: any CPU. Minutes: more than five on busy cores, most of them checks of maps; `--quick`, a smaller
encoder and the map of one clip, one and a half.
Writes:   the study's run, `real_clips.json`, and the maps as figures on the frames under `maps/`.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd

from vitreous.config.compose import validate_study
from vitreous.core.files import write_json
from vitreous.study.explain import ExplainOptions, explain_model
from vitreous.study.run import run_study

SMALL = {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 6, "crop_size": 128, "frames_per_clip": 16}
QUICK = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "crop_size": 32, "frames_per_clip": 16}
RECIPE, ENCODER, NAME = "attentive", "vjepa2", "real_clips"
FATES = ("encoded", "quarantined", "excluded")


def make_study(data: Path, out: Path, architecture: dict[str, int], epochs: int) -> dict[str, Any]:
    """One encoder, one attentive probe on all tokens, one floor."""
    labels = {"regular": "regular", "viral": "diseased", "covid": "diseased", "pneumonia": "diseased"}
    return {
        "name": NAME,
        "data": {
            "kind": "csv",
            "table": str(data / "videos.csv"),
            "files": str(data),
            "video": "video",
            "label": "label",
            "label_map": labels,
            "classes": ["regular", "diseased"],
            "patient": "patient",
            "split": {"fractions": [0.5, 0.25, 0.25], "seed": 0},
            "domains": ["probe"],
            "aggregate": "none",
        },
        # 16 frames at 4 a second are four seconds: some clips are shorter, and repeat their ends
        "encoders": {ENCODER: {"family": "vjepa2", "random": architecture, "input": {"padding": "repeat"}}},
        "recipes": {RECIPE: {"kind": "attentive_probe", "epochs": epochs, "hidden": 64, "heads": 4, "batch_size": 8}},
        "features": {"pooling": "tokens", "dtype": "bf16"},
        "floors": ["majority"],
        "seeds": [0],
        "device": "cpu",
        "precision": "fp32",
        "runs": str(out / "runs"),
        "store": str(out / "features"),
    }


def account_of(manifest: pd.DataFrame) -> dict[str, int]:
    """Clips by fate.

    Raises:
        ValueError: a clip has another fate than those three.
    """
    counts = {fate: int((manifest["fate"] == fate).sum()) for fate in FATES}
    if sum(counts.values()) != len(manifest):
        raise ValueError(f"of {len(manifest)} clips {sum(counts.values())} are accounted for")
    return counts


def run_real_clips(data: Path, out: Path, *, is_quick: bool = False) -> dict[str, Any]:
    """The whole way; maps of the most and least confident val clips, and the first test clip of either class.

    Returns:
        Account, patients, clips by container, seconds, figures (paths below `out`).
    """
    study = make_study(data, out, QUICK if is_quick else SMALL, 2 if is_quick else 20)
    begin = time.perf_counter()
    result = run_study(validate_study(study, where=NAME))
    study_s = time.perf_counter() - begin
    manifest = pd.read_parquet(result.run_dir / "manifest.parquet")
    encoded = manifest[manifest["fate"] == "encoded"]
    table = pd.read_csv(data / "videos.csv", dtype=str)
    is_regular = encoded["relative"].map(table.set_index("video")["label"]) == "regular"
    is_test = encoded["split"] == "test"
    shown = [encoded.loc[is_test & (is_regular == one), "sample_id"].iloc[0] for one in (True, False)]
    options = ExplainOptions(
        samples=shown[:1] if is_quick else shown,
        top=None if is_quick else 1,
        methods=("attention_pooling",) if is_quick else (),
        attention=not is_quick,
        **({"steps": 2, "orders": 5, "draws": 1} if is_quick else {}),
    )
    begin = time.perf_counter()
    explain_model(result.run_dir / ENCODER / RECIPE / "seed0", out / "maps", options=options)
    return {
        "rows_of_the_table": len(table),
        "clips": len(manifest),
        **account_of(manifest),
        "patients": int(manifest["patient_id"].nunique()),
        "clips_by_split": {str(split): int(count) for split, count in encoded["split"].value_counts().items()},
        "clips_by_container": {
            str(ending): int(count)
            for ending, count in encoded["relative"].map(lambda name: Path(name).suffix[1:]).value_counts().items()
        },
        "token_bytes": sum(path.stat().st_size for path in (out / "features" / "tokens").rglob("*.npy")),
        "study_s": study_s,
        "maps_s": time.perf_counter() - begin,
        "figures": sorted(str(path.relative_to(out)) for path in (out / "maps").rglob("*.png")),
        "leaderboard": json.loads(result.leaderboard.to_json(orient="records")),
    }


def main() -> None:
    """Run, print the account, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with videos.csv and videos/")
    parser.add_argument("--out", type=Path, required=True, help="a new folder; the same command resumes")
    parser.add_argument("--quick", action="store_true", help="a smaller encoder, the map of one clip")
    parser.add_argument("--json", type=Path, help="default OUT/real_clips.json")
    arguments = parser.parse_args()
    os.environ.setdefault("VITREOUS_ID_KEY", str(arguments.out / "id_key"))
    found = run_real_clips(arguments.data, arguments.out, is_quick=arguments.quick)
    print(f"{'rows of videos.csv':<30} {found['rows_of_the_table']:>10}")
    for fate in FATES:
        print(f"{fate:<30} {found[fate]:>10}")
    print(f"{'patients':<30} {found['patients']:>10}")
    for key in ("clips_by_split", "clips_by_container"):
        print(f"{key.replace('_', ' '):<30} {', '.join(f'{name} {count}' for name, count in found[key].items())}")
    print(f"{'token cache':<30} {found['token_bytes'] / 1e6:>10.1f} MB")
    print(f"{'study, report included':<30} {found['study_s']:>10.1f} s")
    print(f"{'maps and their checks':<30} {found['maps_s']:>10.1f} s")
    for figure in found["figures"]:
        print(f"  {figure}")
    write_json(arguments.json or arguments.out / "real_clips.json", found)


if __name__ == "__main__":
    main()
