"""`vitreous run -m`: Hydra's multirun, one job per combination, then one joint leaderboard.

Hydra's launchers (basic, joblib, submitit) take the jobs; each job writes ``runs/<name>/multirun/<overrides>``.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vitreous.config.compose import compose_study, find_study, forced, validate_study
from vitreous.config.study import PLACES
from vitreous.core.errors import UserError
from vitreous.core.fingerprints import fingerprint
from vitreous.study.report import print_joint_leaderboard
from vitreous.study.run import run_study

_LONGEST_NAME = 150
_UNTOLD = PLACES | {"name"}


def job_name(overrides: Sequence[str]) -> str:
    """A folder name for the overrides of one job, readable and unique; places and the study's name are left out.

    >>> job_name(["++seeds=[0]", "++recipes.linear.epochs=10", "++runs=/data"])
    'recipes.linear.epochs=10,seeds=[0]'
    """
    told = [override.lstrip("+") for override in overrides]
    plain = ",".join(sorted(one for one in told if one.split("=")[0] not in _UNTOLD)) or "as_it_stands"
    name = re.sub(r"[^A-Za-z0-9._,=\[\]{}:-]", "_", plain)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{fingerprint(plain)[:8]}"


def run_job(composed: Any) -> str:
    """One job, in whatever process the launcher gives it; returns the run directory."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(composed, resolve=True)
    if not isinstance(values, dict):
        raise UserError("a study is a mapping of keys.")
    config = validate_study({str(key): value for key, value in values.items()})
    folder = Path(config.runs).expanduser() / config.name / "multirun" / job_name(HydraConfig.get().overrides.task)
    return str(run_study(config, run_dir=folder).run_dir)


def run_multirun(study: str, overrides: Sequence[str]) -> None:
    """All combinations of the comma lists in `overrides`, then the joint leaderboard of all jobs.

    Keys that begin with ``hydra`` go to Hydra as they stand, e.g. ``hydra/launcher=joblib``.

    Raises:
        UserError: a job cannot be told from another, or the jobs were scored on different patients.
    """
    import hydra

    path = find_study(study)
    swept = [override if override.startswith("hydra") else forced(override) for override in overrides]
    base = [override for override in overrides if not override.startswith("hydra") and "," not in override]
    config = validate_study(compose_study(study, base), where=path.name)
    root = Path(config.runs).expanduser() / config.name / "multirun"
    root.mkdir(parents=True, exist_ok=True)
    quiet = [
        f"hydra.sweep.dir='{root}'",
        "hydra.sweep.subdir=.",
        "hydra.output_subdir=null",
        "hydra.job.chdir=false",
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=disabled",
    ]
    program = sys.argv
    try:
        # Hydra's own front end reads argv; it is the only public way to a multirun with launchers
        sys.argv = [program[0], "--multirun", *quiet, *swept]
        hydra.main(version_base="1.3", config_path=str(path.parent), config_name=path.stem)(run_job)()
    finally:
        sys.argv = program
    (root / "multirun.yaml").unlink(missing_ok=True)
    folders = sorted(folder.parent for folder in root.glob("*/rows.json"))
    print_joint_leaderboard(root, folders, Console())
