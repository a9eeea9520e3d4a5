"""Benchmark 3: a whole grid of linear probes as one program, against a loop over its members and
scikit-learn.

Command:   python benchmarks/probe_grid.py --json build/probe_grid.json
Hardware:  2 CPU cores, nothing else running (waiting threads otherwise cost more than the arithmetic)
Minutes:   about 10; --quick 1
Measures:  wall time, and balanced accuracy per patient on a test set of the setting chosen on val, so that
           speed is not bought with quality.
Data:      768 features, 4 classes, about three volumes a patient, made here.

The grid and the loop train the same members for the same epochs, batches and schedule, without early
stopping. The loop is plain torch: torch.nn.Linear, torch.optim.AdamW, CrossEntropyLoss, one member after
the other. scikit-learn fits L-BFGS logistic regressions, one per C, as many as the grid has members. Where
a case has more members or Cs than --most, that many are timed, spread evenly over the list, and the time is
scaled up; such numbers carry a ~.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import sklearn
import torch
from scipy.special import softmax

from vitreous.recipes.batches import batch_bounds, draw_initial_layers, draw_order
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.patient_scores import PatientScorer
from vitreous.recipes.probe_cost import GridSize, estimate_probe_flops, estimate_probe_memory
from vitreous.recipes.probe_grid import ProbeMember, ProbeSettings, fit_probe_grid
from vitreous.recipes.references import fit_logistic_sweep
from vitreous.recipes.schedule import cosine_with_warmup
from vitreous.recipes.selection import select_member
from vitreous.recipes.standardiser import fit_standardiser

T = TypeVar("T")
WIDTH, NUM_CLASSES = 768, 4
SETTINGS = ProbeSettings(epochs=50, batch_size=64, warmup_epochs=5, patience=None)


@dataclass(frozen=True)
class Row:
    """One line of the table; scores are test balanced accuracy per patient.

    Times are seconds of wall time, with `cpu` seconds of all threads, which mean more on a shared machine.
    """

    members: int
    train_rows: int
    batch_size: int
    grid_s: float
    grid_cpu_s: float
    loop_s: float
    loop_cpu_s: float
    loop_is_scaled: bool
    logistic_s: float
    logistic_cpu_s: float
    logistic_is_scaled: bool
    loop_over_grid: float
    logistic_over_grid: float
    grid_score: float
    loop_score: float
    logistic_score: float
    grid_gflops: float
    grid_memory_mb: float


def main() -> None:
    """Run all cases, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 6000], help="training volumes")
    parser.add_argument("--most", type=int, default=27, help="members and Cs timed one by one at most")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the grid, of which the fastest counts")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="1,000 rows, one repeat, at most 9 one by one")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.most, arguments.repeats = [1000], 9, 1
    torch.set_num_threads(arguments.threads)
    print(HEADER)
    rows = []
    for num_rows in arguments.rows:
        for num_rates, num_decays, num_seeds in ((3, 3, 3), (10, 4, 5)):
            rows.append(measure(num_rows, build_members(num_rates, num_decays, num_seeds), arguments))
            print(line(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {
            "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "threads": arguments.threads, "torch": torch.__version__, "scikit-learn": sklearn.__version__,
        }  # fmt: skip
        report = {
            "schema_version": 1,
            "machine": machine,
            "settings": asdict(SETTINGS),
            "rows": [asdict(r) for r in rows],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def build_members(num_rates: int, num_decays: int, num_seeds: int) -> list[ProbeMember]:
    """A grid learning rate × weight decay × seed."""
    return [
        ProbeMember(float(rate), float(decay), seed=seed)
        for rate in np.geomspace(1e-4, 1e-2, num_rates)
        for decay in [0.0, *np.geomspace(1e-3, 1e-1, num_decays - 1)]
        for seed in range(num_seeds)
    ]


def build_rows(split: str, num_rows: int, seed: int) -> FeatureSet:
    """Correlated features; classes differ by little along a few directions, patients by more."""
    shared = np.random.default_rng(7)
    mixing_DD = shared.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    centre_CD = 0.1 * shared.normal(size=(NUM_CLASSES, WIDTH))
    rng = np.random.default_rng([seed, num_rows])
    num_patients = num_rows // 3
    owner_N = np.concatenate([np.arange(num_patients), rng.integers(0, num_patients, num_rows - num_patients)])
    y_P = rng.choice(NUM_CLASSES, size=num_patients, p=[0.35, 0.23, 0.3, 0.12])
    of_patient_PD = 0.7 * rng.normal(size=(num_patients, WIDTH))
    latent_ND = centre_CD[y_P[owner_N]] + of_patient_PD[owner_N] + 0.7 * rng.normal(size=(num_rows, WIDTH))
    ids_N = np.array([f"{split}{patient}" for patient in owner_N])
    return FeatureSet(
        (latent_ND @ mixing_DD).astype(np.float32), y_P[owner_N], ids_N, 1 / np.bincount(owner_N)[owner_N]
    )


def measure(num_rows: int, members: Sequence[ProbeMember], arguments: argparse.Namespace) -> Row:
    """Time the three ways on the same rows."""
    splits = (("train", num_rows), ("val", num_rows // 3), ("test", 6000))
    train, val, test = (build_rows(split, rows, seed) for seed, (split, rows) in enumerate(splits))

    def test_score(logits: Sequence[npt.NDArray[np.float64]]) -> float:
        probs_KCN = softmax(np.stack(logits), axis=2).transpose(0, 2, 1)
        return float(PatientScorer(test, NUM_CLASSES).balanced_accuracy(probs_KCN).mean())

    runs = [
        clock(lambda: fit_probe_grid(train, val, members, SETTINGS, num_classes=NUM_CLASSES))
        for _ in range(arguments.repeats)
    ]
    grid_s, grid_cpu_s, fitted = min(runs, key=lambda run: run[0])
    chosen = select_member(fitted, [probe.val_score for probe in fitted]).member_idx

    timed = spread(range(len(members)), arguments.most)
    loop_s, loop_cpu_s, _ = clock(lambda: [train_alone(train, val, members[position]) for position in timed])
    # the setting that the grid chose, trained by the loop: the scores should agree
    heads = [train_alone(train, val, members[position]) for position in chosen]
    x_test = fit_standardiser(train.features_ND, train.weight_N).apply(test.features_ND)
    of_heads = [head(torch.from_numpy(x_test).float()).detach().double().numpy() for head in heads]

    Cs = spread(np.geomspace(1e-5, 1e1, len(members)).tolist(), arguments.most)
    logistic_s, logistic_cpu_s, sweep = clock(lambda: fit_logistic_sweep(train, val, Cs, num_classes=NUM_CLASSES))
    best = select_member(sweep, [reference.val_score for reference in sweep]).best_member_idx

    size = GridSize(len(train.y_N), len(val.y_N), WIDTH, NUM_CLASSES)
    more_members, more_Cs = len(members) / len(timed), len(members) / len(Cs)
    return Row(
        members=len(members),
        train_rows=num_rows,
        batch_size=SETTINGS.batch_size or num_rows,
        grid_s=grid_s,
        grid_cpu_s=grid_cpu_s,
        loop_s=loop_s * more_members,
        loop_cpu_s=loop_cpu_s * more_members,
        loop_is_scaled=more_members > 1,
        logistic_s=logistic_s * more_Cs,
        logistic_cpu_s=logistic_cpu_s * more_Cs,
        logistic_is_scaled=more_Cs > 1,
        loop_over_grid=loop_s * more_members / grid_s,
        logistic_over_grid=logistic_s * more_Cs / grid_s,
        grid_score=test_score([fitted[position].predict_logits(test.features_ND) for position in chosen]),
        loop_score=test_score(of_heads),
        logistic_score=test_score([sweep[best].predict_logits(test.features_ND)]),
        grid_gflops=estimate_probe_flops(members, SETTINGS, size) / grid_s / 1e9,
        grid_memory_mb=estimate_probe_memory(members, SETTINGS, size) / 1e6,
    )


def train_alone(train: FeatureSet, val: FeatureSet, member: ProbeMember) -> torch.nn.Linear:
    """One member in plain torch, judged on val after every epoch; the head of its best epoch."""
    standardiser = fit_standardiser(train.features_ND, train.weight_N)
    x, x_val = (torch.from_numpy(standardiser.apply(rows.features_ND)).float() for rows in (train, val))
    y, weight = torch.from_numpy(train.y_N), torch.from_numpy(train.weight_N).float()
    scorer = PatientScorer(val, NUM_CLASSES)
    head, best_head = torch.nn.Linear(WIDTH, NUM_CLASSES), torch.nn.Linear(WIDTH, NUM_CLASSES)
    ((initial_weight, initial_bias),) = draw_initial_layers(member.seed, [WIDTH, NUM_CLASSES])
    head.load_state_dict({"weight": torch.from_numpy(initial_weight), "bias": torch.from_numpy(initial_bias)})
    optimizer = torch.optim.AdamW(
        [
            {"params": [head.weight], "weight_decay": member.weight_decay},
            {"params": [head.bias], "weight_decay": 0.0},
        ],
        lr=member.learning_rate,
    )
    criterion = torch.nn.CrossEntropyLoss(reduction="none")
    bounds = batch_bounds(len(x), SETTINGS.batch_size)
    num_steps, num_warmup_steps = SETTINGS.epochs * len(bounds), SETTINGS.warmup_epochs * len(bounds)
    best_score, taken = -1.0, 0
    for epoch in range(1, SETTINGS.epochs + 1):
        order = torch.from_numpy(draw_order(member.seed, epoch, len(x)))
        for begin, end in bounds:
            factor = cosine_with_warmup(taken, num_steps=num_steps, num_warmup_steps=num_warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = member.learning_rate * factor
            rows = order[begin:end]
            loss = (criterion(head(x[rows]), y[rows]) * weight[rows]).sum() / weight[rows].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            taken += 1
        with torch.no_grad():
            score = scorer.balanced_accuracy(head(x_val).softmax(dim=1).T[None].numpy())[0]
        if score > best_score:
            best_score = score
            best_head.load_state_dict(head.state_dict())
    return best_head


def spread(values: Sequence[T], most: int) -> list[T]:
    """At most `most` of the values, evenly spread and with both ends."""
    idx = np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))
    return [values[position] for position in idx]


def clock(work: Callable[[], T]) -> tuple[float, float, T]:
    """Seconds of wall time, CPU seconds of all threads, and the result."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - begin, time.process_time() - cpu_begin, result


COLUMNS = {
    "members": "{members}",
    "rows": "{train_rows}",
    "grid s": "{grid_s:.2f}",
    "cpu s": "{grid_cpu_s:.2f}",
    "loop s": "{loop_mark}{loop_s:.1f}",
    "cpu s ": "{loop_mark}{loop_cpu_s:.1f}",
    "loop/grid": "{loop_over_grid:.1f}",
    "logistic s": "{logistic_mark}{logistic_s:.1f}",
    " cpu s": "{logistic_mark}{logistic_cpu_s:.1f}",
    "logistic/grid": "{logistic_over_grid:.1f}",
    "grid BA": "{grid_score:.3f}",
    "loop BA": "{loop_score:.3f}",
    "logistic BA": "{logistic_score:.3f}",
    "GFLOP/s": "{grid_gflops:.1f}",
    "memory MB": "{grid_memory_mb:.0f}",
}
HEADER = "  ".join(f"{name:>9}" for name in COLUMNS)


def line(row: Row) -> str:
    """One line under the header; BA is test balanced accuracy per patient."""
    values = asdict(row) | {
        "loop_mark": "~" if row.loop_is_scaled else "",
        "logistic_mark": "~" if row.logistic_is_scaled else "",
    }
    cells = (f"{template.format(**values):>{max(9, len(name))}}" for name, template in COLUMNS.items())
    return "  ".join(cells)


if __name__ == "__main__":
    main()
