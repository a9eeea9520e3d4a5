"""``findings.json``: what the doctor said of a run, without ids, for the report."""

import json

from vitreous.core.files import write_json
from vitreous.core.finding import Finding
from vitreous.study.run_directory import RunDirectory

FINDINGS = "findings.json"
SCHEMA_VERSION = 1


def write_findings(directory: RunDirectory, findings: list[Finding]) -> None:
    """Keep them; an earlier examination is replaced."""
    plain = [vars(finding) for finding in findings]
    write_json(directory.root / FINDINGS, {"schema_version": SCHEMA_VERSION, "findings": plain})


def read_findings(directory: RunDirectory) -> list[Finding]:
    """Those of the last examination; none where the doctor has not been asked."""
    path = directory.root / FINDINGS
    if not path.exists():
        return []
    return [Finding(**finding) for finding in json.loads(path.read_text())["findings"]]
