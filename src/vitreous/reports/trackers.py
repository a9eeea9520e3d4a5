"""Optional trackers: the leaderboard once more, where a lab already looks. All of them write to local files.

A tracker gets metrics, settings, training curves and the two artefacts without ids (leaderboard.csv, report.html),
never predictions, manifests or anything else that names a patient. ``trackers/<kind>`` in the run directory is made
anew each time.
"""

import importlib.util
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vitreous.core.errors import UserError
from vitreous.reports.leaderboard import Leaderboard
from vitreous.reports.leaderboard_tables import leaderboard_cells
from vitreous.reports.report import TrainingCurves

TrackerKind = Literal["tensorboard", "wandb", "mlflow"]
_ARTEFACTS = ("leaderboard.csv", "report.html")
_SETTINGS = ("rank", "letters", "encoder", "recipe", "seeds", "n_test_patients", "n_test_samples",
             "trainable_parameters", "is_floor", "notes", "undefined")  # fmt: skip


@dataclass(frozen=True)
class TrackedRow:
    """One row of the leaderboard as a tracker sees it.

    Args:
        name: ``encoder / recipe``.
        settings: name → text.
        metrics: name → number; what is undefined is named in the setting ``undefined``.
        curves: ``seed 0/val_loss`` → (epoch, value) pairs.
    """

    name: str
    settings: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[int, float]]]


def log_run(kind: TrackerKind, run_dir: Path, leaderboard: Leaderboard, curves: Sequence[TrainingCurves] = ()) -> Path:
    """Write every row of the leaderboard as a run of its own, below ``trackers/<kind>`` of the run directory.

    Returns:
        The folder to open with the tracker.
    Raises:
        UserError: the tracker is not installed, or not known.
    """
    check_tracker(kind)
    folder = run_dir / "trackers" / kind
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    artefacts = [run_dir / name for name in _ARTEFACTS if (run_dir / name).exists()]
    _WRITERS[kind](folder, run_dir.resolve().name, tracked_rows(leaderboard, curves), artefacts)
    return folder


def check_tracker(kind: TrackerKind) -> None:
    """Refuse a tracker that cannot be used, before any work starts.

    Raises:
        UserError: the tracker is not installed, or not known.
    """
    if kind not in _WRITERS:
        raise UserError(f"tracker: {kind!r} is not known; choose one of {', '.join(get_args(TrackerKind))}, or null.")
    if importlib.util.find_spec(kind) is None:
        raise UserError(f"tracker: {kind} is not installed; run pip install -e '.[trackers]' in the checkout.")


def tracked_rows(leaderboard: Leaderboard, curves: Sequence[TrainingCurves]) -> list[TrackedRow]:
    """Rows of the leaderboard with their settings, metrics and curves, best first."""
    by_row = {one.row: one for one in curves}
    rows = []
    for row, cells in zip(leaderboard.rows, leaderboard_cells(leaderboard), strict=True):
        metrics = {
            name: float(cell) for name, cell in cells.items()
            if name not in _SETTINGS and isinstance(cell, float)
        }  # fmt: skip
        settings = {name: "" if cells[name] is None else str(cells[name]) for name in _SETTINGS if name in cells}
        found = by_row.get(row.name)
        if found is not None:
            settings["chosen"] = found.setting
        rows.append(TrackedRow(row.name, settings, metrics, _points(found)))
    return rows


def _points(found: TrainingCurves | None) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for label, history in (found.histories if found is not None else {}).items():
        for epoch in history:
            for name, value in epoch.items():
                if name != "epoch":
                    points.setdefault(f"{label}/{name}", []).append((int(epoch["epoch"]), float(value)))
    return points


def _write_tensorboard(folder: Path, study: str, rows: Sequence[TrackedRow], artefacts: Sequence[Path]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for row in rows:
        with SummaryWriter(str(folder / _file_name(row.name))) as writer:
            for name, value in row.metrics.items():
                writer.add_scalar(name, value, 0)
            for name, points in row.curves.items():
                for epoch, value in points:
                    writer.add_scalar(name, value, epoch)
            lines = "\n".join(f"- {name}: {text}" for name, text in {"study": study, **row.settings}.items())
            writer.add_text("settings", lines, 0)
    for path in artefacts:
        shutil.copyfile(path, folder / path.name)


def _write_wandb(folder: Path, study: str, rows: Sequence[TrackedRow], artefacts: Sequence[Path]) -> None:
    import wandb

    quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True,
                           disable_code=True)  # fmt: skip
    for number, row in enumerate(rows):
        run = wandb.init(project=study, name=row.name, dir=str(folder), mode="offline", config=dict(row.settings),
                         settings=quiet, reinit="finish_previous")  # fmt: skip
        by_epoch: dict[int, dict[str, float]] = {}
        for name, points in row.curves.items():
            for epoch, value in points:
                by_epoch.setdefault(epoch, {})[name] = value
        for epoch in sorted(by_epoch):
            run.log(by_epoch[epoch], step=epoch)
        run.summary.update(dict(row.metrics))
        for path in artefacts if number == 0 else ():
            run.save(str(path.resolve()), base_path=str(path.resolve().parent), policy="now")
        run.finish()


def _write_mlflow(folder: Path, study: str, rows: Sequence[TrackedRow], artefacts: Sequence[Path]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.resolve()}/mlflow.db")
    experiment = client.create_experiment(study, artifact_location=(folder.resolve() / "artefacts").as_uri())
    for number, row in enumerate(rows):
        names = _mlflow_names([*row.metrics, *row.curves])
        run = client.create_run(experiment, run_name=row.name)
        for name, text in row.settings.items():
            client.set_tag(run.info.run_id, name, text)
        for name, value in row.metrics.items():
            client.log_metric(run.info.run_id, names[name], value)
        for name, points in row.curves.items():
            for epoch, value in points:
                client.log_metric(run.info.run_id, names[name], value, step=epoch)
        for path in artefacts if number == 0 else ():
            client.log_artifact(run.info.run_id, str(path))
        client.set_terminated(run.info.run_id)


_WRITERS: dict[str, Callable[[Path, str, Sequence[TrackedRow], Sequence[Path]], None]] = {
    "tensorboard": _write_tensorboard, "wandb": _write_wandb, "mlflow": _write_mlflow,
}  # fmt: skip


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _mlflow_names(names: Sequence[str]) -> dict[str, str]:
    """Names in the letters MLflow allows.

    Raises:
        UserError: two names become one.
    """
    allowed = {name: re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII) for name in names}
    if len(set(allowed.values())) < len(allowed):
        raise UserError(f"tracker: mlflow cannot tell apart metrics whose names differ only in signs: {sorted(names)}. "
                        "Choose other class names, or another tracker.")  # fmt: skip
    return allowed
