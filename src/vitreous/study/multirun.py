"""`vitreous run -m`: Hydra's multirun, one job per combination, then one joint leaderboard.

Hydra's launchers (basic, joblib, submitit) take the jobs; each job writes ``runs/<name>/multirun/<overrides>``. A job
that fails leaves the others alone; what went wrong comes back through a small file, whatever process it ran in.
"""

import json
import re
import shutil
import sys
import tempfile
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
_UNTOLD = {*PLACES, "name"}
_OURS = ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.chdir", "hydra.output_subdir")


def job_name(overrides: Sequence[str]) -> str:
    """A folder name for the overrides of one job, readable and unique; places and the study's name are left out.

    >>> job_name(["++seeds=[0]", "++recipes.linear.epochs=10", "++runs=/data"])
    'recipes.linear.epochs=10,seeds=[0]'
    """
    told = [override.lstrip("+") for override in overrides]
    plain = ",".join(sorted(one for one in told if _root(one.split("=")[0]) not in _UNTOLD)) or "as_it_stands"
    name = re.sub(r"[^A-Za-z0-9._,=\[\]{}:-]", "_", plain)
    # cut or with signs replaced, two jobs could share a name
    is_whole = name == plain and len(name) <= _LONGEST_NAME
    return name if is_whole else f"{name[:_LONGEST_NAME]}-{fingerprint(plain)[:8]}"


def _root(key: str) -> str:
    return key.partition(".")[0]


def run_job(composed: Any) -> None:
    """One job, in whatever process the launcher gives it. Errors are written down, not raised: Hydra would end the
    sweep with a traceback.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    hydra = HydraConfig.get()
    name = job_name(hydra.overrides.task)
    outcome = {"job": name, "error": "", "is_users": False}
    try:
        values: Any = OmegaConf.to_container(composed, resolve=True)
        config = validate_study({str(key): value for key, value in values.items()}, where=name)
        run_study(config, run_dir=Path(hydra.sweep.dir) / name)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        outcome |= {"error": str(error), "is_users": True}
    except VitreousError as error:
        outcome |= {"error": str(error), "is_users": isinstance(error, UserError)}
    write_json(Path(hydra.runtime.output_dir) / f"{fingerprint(name)[:16]}.json", outcome)


def run_multirun(study: str, overrides: Sequence[str]) -> None:
    """All combinations of the comma lists in `overrides`, then the joint leaderboard of all jobs.

    Keys that begin with ``hydra`` go to Hydra as they stand, e.g. ``hydra/launcher=joblib``.

    Raises:
        ConfigError: a name or a place is swept, or the study of the first job is wrong.
        VitreousError: some jobs failed; the others are finished and stand in the joint leaderboard.
    """
    import hydra

    path = find_study(study)
    if taken := [override for override in overrides if override.lstrip("+~").split("=")[0] in _OURS]:
        raise ConfigError(f"override {taken[0]!r}: a multirun sets this itself; say where runs go with runs=PATH.")
    ours = [override for override in overrides if not override.startswith("hydra")]
    first = compose_study(study, _first_values(ours))
    config = validate_study(first, where=path.name)
    root = Path(config.runs).expanduser() / config.name / "multirun"
    root.mkdir(parents=True, exist_ok=True)
    outcomes = Path(tempfile.mkdtemp(prefix=".sweep-", dir=root))  # each sweep its own: several may share the root
    quiet = [
        f"hydra.sweep.dir={_quoted(root.absolute())}",
        f"hydra.sweep.subdir={outcomes.name}",
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
        done = [json.loads(file.read_text()) for file in sorted(outcomes.glob("*.json"))]
    finally:
        sys.argv = program
        shutil.rmtree(outcomes)
        (root / "multirun.yaml").unlink(missing_ok=True)
    if not done:
        raise RunError(f"{root}: no job of the sweep came to an end; see the launcher's messages above.")
    failed = [outcome for outcome in done if outcome["error"]]
    finished = sorted(outcome["job"] for outcome in done if not outcome["error"])
    if finished:
        try:
            print_joint_leaderboard(root, [root / name for name in finished], Console())
        except UserError as error:
            if not failed:
                raise
            failed.append({"job": "joint leaderboard", "error": str(error), "is_users": True})
    _raise_failures(failed, len(done))


def _quoted(path: Path) -> str:
    return "'" + path.as_posix().replace("'", "\\'") + "'"


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
        key = override.key_or_group
        if _root(key) in _UNTOLD:
            raise ConfigError(f"override {text!r}: {key} names or places the runs and cannot be swept.")
        if not override.is_discrete_sweep():
            raise ConfigError(f"override {text!r}: only lists and ranges can be swept, such as {key}=1,2.")
        firsts.append(f"{text.split('=', 1)[0]}={next(override.sweep_string_iterator())}")
    return firsts


def _raise_failures(failed: Sequence[dict[str, Any]], num_jobs: int) -> None:
    if not failed:
        return
    told = "\n".join(f"  - {one['job']}: {one['error']}" for one in failed)
    message = f"some of {num_jobs} jobs failed; what the others made is kept:\n{told}"
    raise UserError(message) if any(one["is_users"] for one in failed) else RunError(message)
