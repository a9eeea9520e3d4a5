"""`vitreous demo`: cohort, checkpoints, study, leaderboard and report; offline, in minutes."""

from importlib import resources
from pathlib import Path

from rich.console import Console

from vitreous.config.compose import load_study
from vitreous.core.files import write_bytes
from vitreous.core.progress import progress_bar
from vitreous.demo.cohort import write_cohort
from vitreous.demo.flaws import plan_cohort
from vitreous.demo.recipe import CohortRecipe
from vitreous.reports.leaderboard_tables import render_terminal
from vitreous.study.run import run_study

CHECKPOINTS = ("multi_scanner", "scanner_1", "scanner_2")


def run_demo(out: Path) -> None:
    """Write the synthetic cohort below `out`, run the packaged study `demo` on it, print what came out.

    Run again, it continues; finished parts are not made anew.
    """
    console = Console()
    recipe = CohortRecipe()
    with progress_bar("Writing the synthetic cohort", len(plan_cohort(recipe).orders)) as advance:
        write_cohort(out / "cohort", recipe, advance)
    for name in CHECKPOINTS:
        packaged = resources.files("vitreous.demo") / "checkpoints" / f"{name}.safetensors"
        target = out / "checkpoints" / f"{name}.safetensors"
        if not target.exists() or target.read_bytes() != packaged.read_bytes():
            write_bytes(target, packaged.read_bytes())
    # by its own path: a file of the user's that is named demo.yaml is another study
    study = str(resources.files("vitreous.studies") / "demo.yaml")
    result = run_study(load_study(study, demo_overrides(out)))
    console.print(render_terminal(result.standing))
    console.print(f"\nleaderboard  {result.run_dir / 'leaderboard.md'}", highlight=False, soft_wrap=True)
    console.print(f"report       {result.report}", highlight=False, soft_wrap=True)


def demo_overrides(out: Path) -> list[str]:
    """The packaged study with its places below `out`."""
    places = {
        "data.table": out / "cohort" / "participants.tsv",
        "data.files": out / "cohort",
        "data.manifest": out / "cohort" / "manifest.tsv",
        "runs": out / "runs",
        "store": out / "features",
        "cache.dir": out / "files",
    }
    places |= {f"encoders.{name}.checkpoint": out / "checkpoints" / f"{name}.safetensors" for name in CHECKPOINTS}
    return [f"{key}={_quoted(str(path))}" for key, path in places.items()]


def _quoted(text: str) -> str:
    """A value in Hydra's grammar, whatever stands in a path."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
