"""Real volumes and real weights: MedMNIST 3D at 64³, LiteMedSAM slice by slice and a 3D chest-CT ResNet-152.

A stratified draw of `--train` training volumes (all of val and test) is written as an npz of the same layout, since the
2D encoder takes about a second a volume on two cores; `--train 0` takes all. Then the packaged study `npz_volumes` runs
on it, with both encoders, their untrained twins and the majority floor.

    python benchmarks/real_volumes.py adrenal --data DIR --medsam lite_medsam.pth --resnet astra.pt --out real
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console

from vitreous.config.compose import load_study
from vitreous.core.files import replacing
from vitreous.core.streams import numpy_stream
from vitreous.reports.leaderboard_tables import render_terminal
from vitreous.study.run import run_study

SPLITS = ("train", "val", "test")
TASKS = {
    "adrenal": ("adrenalmnist3d_64.npz", ("normal", "hyperplasia")),
    "vessel": ("vesselmnist3d_64.npz", ("vessel", "aneurysm")),
}


def draw_rows(labels_N: np.ndarray, count: int) -> np.ndarray:
    """Rows of a stratified draw in the shares of the classes, in their first order; all rows for a count of 0."""
    if count == 0 or count >= len(labels_N):
        return np.arange(len(labels_N))
    order = numpy_stream(0, "real volumes").permutation(len(labels_N))
    chosen = [
        order[labels_N[order] == label][: round(count * float(np.mean(labels_N == label)))]
        for label in np.unique(labels_N)
    ]
    return np.sort(np.concatenate(chosen))


def write_drawn(source: Path, target: Path, num_train: int) -> None:
    """The same arrays with fewer training rows."""
    with np.load(source) as arrays:
        drawn = {}
        for split in SPLITS:
            labels_N = arrays[f"{split}_labels"].reshape(-1)
            rows = draw_rows(labels_N, num_train if split == "train" else 0)
            drawn[f"{split}_images"] = arrays[f"{split}_images"][rows]
            drawn[f"{split}_labels"] = arrays[f"{split}_labels"][rows]
    with replacing(target) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **drawn)


def main() -> None:
    """Draw, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--data", type=Path, required=True, help="folder of the npz files")
    parser.add_argument("--medsam", type=Path, help="lite_medsam.pth; left out: without this encoder")
    parser.add_argument("--resnet", type=Path, help="joined chest-CT ResNet-152; left out: without this encoder")
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--pixels", type=int, default=256, help="rows and columns of LiteMedSAM's slices")
    parser.add_argument("--out", type=Path, default=Path("real"))
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], help="further overrides of the study")
    arguments = parser.parse_args()
    name, classes = TASKS[arguments.task]
    run_name = f"{arguments.task}_train{arguments.train or 'all'}_{arguments.slices}x{arguments.pixels}"
    table = arguments.out / f"{arguments.task}_train{arguments.train or 'all'}.npz"
    if not table.exists():
        write_drawn(arguments.data / name, table, arguments.train)
    # shape masks of 0 and 255: not Hounsfield units, and so thin that both percentiles of LiteMedSAM's clip are 0
    window = "normalisation: {kind: window, low: 0, high: 255}"
    encoders = []
    if arguments.medsam:
        size = f"size: [{arguments.slices}, {arguments.pixels}, {arguments.pixels}]"
        options = f"options: {{num_slices: {arguments.slices}}}, input: {{{size}, {window}}}"
        encoders.append(f"medsam: {{family: litemedsam, checkpoint: '{arguments.medsam}', {options}}}")
    if arguments.resnet:
        options = f"options: {{img_size: [64, 64, 64]}}, input: {{{window}}}"
        encoders.append(f"chest_ct: {{family: resnet3d, checkpoint: '{arguments.resnet}', {options}}}")
    overrides = [
        f"name={run_name}",
        f"data.table='{table}'",
        f"data.classes=[{','.join(classes)}]",
        "~encoders",
        f"+encoders={{{', '.join(encoders)}}}",
        f"runs='{arguments.out / 'runs'}'",
        f"store='{arguments.out / 'features'}'",
        *arguments.overrides,
    ]
    result = run_study(load_study("npz_volumes", overrides))
    Console().print(render_terminal(result.standing))
    print(result.report)


if __name__ == "__main__":
    main()
