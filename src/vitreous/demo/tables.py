"""The three tables of a cohort as tab-separated text."""

from collections.abc import Sequence

from vitreous.demo.anatomy import draw_lesions, draw_person
from vitreous.demo.dicom import derived_uid
from vitreous.demo.flaws import Plan
from vitreous.demo.participants import OTHER_MODALITIES
from vitreous.demo.recipe import CohortRecipe
from vitreous.demo.scanners import SCANNERS

PARTICIPANT_COLUMNS = (
    "participant_id",
    "clinical_site",
    "study_group",
    "age",
    "study_visit_date",
    "recommended_split",
)
MANIFEST_COLUMNS = (
    "participant_id",
    "manufacturer",
    "manufacturers_model_name",
    "anatomic_region",
    "imaging",
    "laterality",
    "height",
    "width",
    "number_of_frames",
    "pixel_spacing",
    "slice_thickness",
    "sop_instance_uid",
    "filepath",
)
GROUND_TRUTH_COLUMNS = (
    "participant_id",
    "grade",
    "severity",
    "inner_retina",
    "choroid",
    "calibre",
    "tortuosity",
    "disorganisation",
    "foci_right",
    "foci_left",
    "cysts_right",
    "cysts_left",
    "planted_flaw",
)


def _tsv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def participants_table(plan: Plan) -> str:
    """``participants.tsv``: one row a participant, one TRUE/FALSE column a modality."""
    modalities = sorted([*OTHER_MODALITIES, "retinal_oct"])
    rows = []
    for row in plan.rows:
        person = row.participant
        has = person.modalities | {"retinal_oct": person.has_oct}
        rows.append(
            [
                row.participant_id,
                person.site,
                row.study_group,
                person.age,
                person.visit.isoformat(),
                row.split,
                *("TRUE" if has[name] else "FALSE" for name in modalities),
            ]
        )
    return _tsv([*PARTICIPANT_COLUMNS, *modalities], rows)


def manifest_table(plan: Plan, recipe: CohortRecipe) -> str:
    """``manifest.tsv``: one row a volume; what a spoiled file should have held."""
    rows = []
    for order in plan.orders:
        scanner = SCANNERS[order.device]
        spacing_d, spacing_h, spacing_w = scanner.spacing_mm
        rows.append(
            [
                order.participant_id,
                scanner.manufacturer,
                scanner.model,
                scanner.region,
                "oct",
                order.laterality,
                scanner.num_rows,
                scanner.num_columns,
                scanner.num_frames,
                f"[{spacing_h}, {spacing_w}]",
                spacing_d,
                derived_uid(recipe.fingerprint, order.participant_id, order.relative, "instance"),
                f"/{order.relative}",
            ]
        )
    return _tsv(MANIFEST_COLUMNS, rows)


def ground_truth_table(plan: Plan, recipe: CohortRecipe) -> str:
    """``ground_truth.tsv``: severity and markers that no study reads, for checking what a study finds."""
    rows = []
    for participant in plan.drawn:
        names = ("participant", participant.participant_id)
        person = draw_person(participant.severity, participant.age, recipe.seed, *names)
        lesions = {eye: draw_lesions(person, eye, recipe.seed, *names).is_focus_L for eye in ("R", "L")}
        factors = (person.severity, person.inner, person.choroid, person.calibre, person.tortuosity)
        rows.append(
            [
                participant.participant_id,
                participant.grade,
                *(f"{value:.6f}" for value in (*factors, person.disorganisation)),
                *(int(lesions[eye].sum()) for eye in ("R", "L")),
                *(int((~lesions[eye]).sum()) for eye in ("R", "L")),
                plan.flaw_of_participant.get(participant.participant_id, ""),
            ]
        )
    return _tsv(GROUND_TRUTH_COLUMNS, rows)
