"""`vitreous run -m`: Hydra's multirun, one job per combination, then one joint leaderboard.

Hydra's launchers (basic, joblib, submitit) take the jobs; each job writes ``runs/<name>/multirun/<overrides>``. A job
that fails leaves the others alone; what went wrong comes back through a small file, whatever process it ran in.
"""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vitreous.config.compose import compose_study, find_study, forced, validate_study
from vitreous.config.study import PLACES
from vitreous.core.errors import ConfigError, RunError, UserError, VitreousError
from vitreous.core.files import write_json
from vitreous.core.fingerprints import fingerprint
from vitreous.study.report import print_joint_leaderboard
from vitreous.study.run import run_study

_LONGEST_NAME = 150
_UNTOLD = PLACES | {"name"}
_OUTCOMES = ".sweep"


def job_name(overrides: Sequence[str]) -> str:
    """A folder name for the overrides of one job, readable and unique; places and the study's name are left out.

    >>> job_name(["++seeds=[0]", "++recipes.linear.epochs=10", "++runs=/data"])
    'recipes.linear.epochs=10,seeds=[0]'
    """
    told = [override.lstrip("+") for override in overrides]
    plain = ",".join(sorted(one for one in told if one.split("=")[0] not in _UNTOLD)) or "as_it_stands"
    name = re.sub(r"[^A-Za-z0-9._,=\[\]{}:-]", "_", plain)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{fingerprint(plain)[:8]}"


def run_job(composed: Any) -> None:
    """One job, in whatever process the launcher gives it. Errors are written down, not raised: Hydra would end the
    sweep with a traceback.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(composed, resolve=True)
    if not isinstance(values, dict):
        raise UserError("a study is a mapping of keys.")
    name = job_name(HydraConfig.get().overrides.task)
    root = Path(HydraConfig.get().sweep.dir)
    outcome = {"job": name, "error": "", "is_users": False}
    try:
        config = validate_study({str(key): value for key, value in values.items()}, where=name)
        run_study(config, run_dir=root / name)
    except VitreousError as error:
        outcome |= {"error": str(error), "is_users": isinstance(error, UserError)}
    write_json(root / _OUTCOMES / f"{fingerprint(name)[:16]}.json", outcome)


def run_multirun(study: str, overrides: Sequence[str]) -> None:
    """All combinations of the comma lists in `overrides`, then the joint leaderboard of all jobs.

    Keys that begin with ``hydra`` go to Hydra as they stand, e.g. ``hydra/launcher=joblib``.

    Raises:
        ConfigError: a name or a place is swept, or the study is wrong.
        VitreousError: some jobs failed; the others are finished and stand in the joint leaderboard.
    """
    import hydra

    path = find_study(study)
    ours = [override for override in overrides if not override.startswith("hydra")]
    first = compose_study(study, _first_values(ours))
    config = validate_study(first, where=path.name)
    root = Path(config.runs).expanduser() / config.name / "multirun"
    outcomes = root / _OUTCOMES
    shutil.rmtree(outcomes, ignore_errors=True)  # of a sweep that was killed
    outcomes.mkdir(parents=True)
    quiet = [
        f"hydra.sweep.dir='{root}'",
        "hydra.sweep.subdir=.",
        "hydra.output_subdir=null",
        "hydra.job.chdir=false",
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=disabled",
    ]
    theirs = [override for override in overrides if override.startswith("hydra")]
    program = sys.argv
    try:
        # Hydra's own front end reads argv; it is the only public way to a multirun with launchers
        sys.argv = [program[0], "--multirun", *quiet, *theirs, *(forced(override) for override in ours)]
        hydra.main(version_base="1.3", config_path=str(path.parent), config_name=path.stem)(run_job)()
    finally:
        sys.argv = program
    (root / "multirun.yaml").unlink(missing_ok=True)
    done = [json.loads(file.read_text()) for file in sorted(outcomes.glob("*.json"))]
    shutil.rmtree(outcomes)
    finished = sorted(outcome["job"] for outcome in done if not outcome["error"])
    if finished:
        print_joint_leaderboard(root, [root / name for name in finished], Console())
    _raise_failures([outcome for outcome in done if outcome["error"]])


def _first_values(overrides: Sequence[str]) -> list[str]:
    """The overrides of the first job: each sweep replaced by its first value.

    Raises:
        ConfigError: what names or places the runs is swept.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    firsts = []
    for text in overrides:
        try:
            override = parser.parse_override(forced(text))
        except HydraException as error:
            raise ConfigError(f"override {text!r} cannot be read ({str(error).splitlines()[0]}).") from None
        if not override.is_sweep_override():
            firsts.append(text)
            continue
        if override.key_or_group in _UNTOLD:
            key = override.key_or_group
            raise ConfigError(f"override {text!r}: {key} names or places the runs and cannot be swept.")
        value = next(iter(override.sweep_string_iterator()))
        firsts.append(f"{text.split('=', 1)[0]}={value}")
    return firsts


def _raise_failures(failed: Sequence[dict[str, Any]]) -> None:
    if not failed:
        return
    message = f"{len(failed)} jobs failed:\n" + "\n".join(f"  - {one['job']}: {one['error']}" for one in failed)
    raise UserError(message) if any(one["is_users"] for one in failed) else RunError(message)
