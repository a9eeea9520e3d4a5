"""How APTOS 2019, Messidor-2 and IDRiD are laid out as their owners publish them, and what becomes of each file.

Layouts as published: APTOS 2019 (competition files ``train.csv``, ``train_images``, ``test.csv``, ``test_images``);
Messidor-2 (``IMAGES``, the table of pairs ``messidor-2.csv``, and the adjudicated grades ``messidor_data.csv`` of
Krause et al. 2018, which come separately); IDRiD part B (Porwal et al. 2018).
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd

from vitreous.core.errors import UserError
from vitreous.samples.archives import Archive, describe_members
from vitreous.samples.problems import Problems, examples
from vitreous.samples.tables import is_missing, read_table

CohortName = Literal["aptos", "messidor", "idrid"]
GRADES = ("no_dr", "mild", "moderate", "severe", "proliferative")
IMAGE_COLUMNS = ("member", "image", "grade", "published_split", "patient", "macular_edema")
LEFT_OUT_COLUMNS = ("name", "rule", "detail")
UNREADABLE = "image cannot be read"
MISSING = "image missing"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
_LARGEST_TABLE = 16 * 2**20
_NESTED = re.compile(r"\.(zip|tar|tgz|gz|7z|rar)(\.\d+)?$", re.IGNORECASE)


@dataclass(frozen=True)
class CohortLayout:
    """What an archive holds for one cohort.

    Args:
        images: one row a labelled image that is there: ``member`` of the archive, ``image`` below ``images/``,
            ``grade`` 0–4, ``published_split`` (train, test, or empty), ``patient`` (empty where not published),
            ``macular_edema`` (empty where not published).
        left_out: one row a file or table row that is not used: ``name``, ``rule``, ``detail``.
        notes: what a reader of the numbers should know.
    """

    images: pd.DataFrame
    left_out: pd.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PublicCohort:
    """A cohort that is published for download.

    Args:
        title: full name.
        source: who publishes images and labels, with the article to cite.
        licence: the terms, in short.
        looks_for: what an archive of it must hold, in words.
        is_found: whether the names of an archive look like this cohort.
        lay_out: sorts the files of an archive.
    """

    title: str
    source: str
    licence: str
    looks_for: str
    is_found: Callable[[Archive], bool]
    lay_out: Callable[[Archive], CohortLayout]


def lay_out_cohort(name: CohortName, archive: Archive) -> CohortLayout:
    """Sort the files of an archive by the published layout of a cohort.

    Raises:
        UserError: the archive is of another cohort, or incomplete, or its table does not fit.
    """
    cohort = PUBLIC_COHORTS[name]
    if not cohort.is_found(archive):
        others = [other for other, candidate in PUBLIC_COHORTS.items() if other != name and candidate.is_found(archive)]
        nested = [member for member in archive.members if _NESTED.search(member)]
        if others:
            hint = f" It looks like {PUBLIC_COHORTS[others[0]].title}: use `vitreous data prepare {others[0]}`."
        elif nested:
            hint = f" It holds archives ({examples(nested, 3)}): unpack them into one folder and name that folder."
        else:
            hint = ""
        raise UserError(
            f"{archive.path}: is no {cohort.title}. Looked for {cohort.looks_for}; found {describe_members(archive)}."
            f"{hint}"
        )
    layout = cohort.lay_out(archive)
    _check_layout(layout, archive)
    return layout


def _check_layout(layout: CohortLayout, archive: Archive) -> None:
    problems = Problems(str(archive.path))
    images = layout.images
    wrong = images.loc[~images["grade"].isin([str(grade) for grade in range(len(GRADES))])]
    if len(wrong):
        shown = [f"{image}: {grade}" for image, grade in zip(wrong["image"].head(5), wrong["grade"].head(5))]
        problems.add(f"{len(wrong)} grades are not 0 to {len(GRADES) - 1}: {examples(shown)}.")
    folded = images["image"].str.casefold()
    if folded.duplicated().any():
        problems.add(f"images stand twice in the table: {examples(images['image'][folded.duplicated(keep=False)], 5)}.")
    if images.empty:
        missing = layout.left_out.loc[layout.left_out["rule"] == MISSING, "name"]
        problems.add(
            f"none of the {len(missing)} images of the table is there, e.g. {examples(missing, 3)}; found "
            f"{describe_members(archive)}."
        )
    problems.check_none()


# APTOS 2019


def _is_aptos(archive: Archive) -> bool:
    tables = _named(archive, "train.csv")
    return len(tables) == 1 and any(_is_below(name, _parent(tables[0]), "train_images") for name in archive.members)


def _lay_out_aptos(archive: Archive) -> CohortLayout:
    (name,) = _named(archive, "train.csv")
    table = _tables(archive, [name])[name]
    _require(table, ("id_code", "diagnosis"), archive, name)
    root = _parent(name)
    train = _index_images(archive, lambda member: _is_below(member, root, "train_images"))
    rows, left_out = _match(table["id_code"], train, folder="")
    rows = rows.assign(grade=table["diagnosis"].map(_whole_number).loc[rows.index])
    left_out += [
        (member, "test image without a published grade", "train.csv does not list it")
        for member in _images_below(archive, root, "test_images")
    ]
    return _layout(rows, left_out, ["APTOS publishes no patients: images of one person may stand in two splits."])


# Messidor-2


def _messidor_tables(archive: Archive) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Tables of adjudicated grades and tables of pairs, by name; whatever they are called."""
    kinds: dict[str, list[str]] = {"grades": [], "pairs": []}
    tables = [name for name in archive.members if name.casefold().endswith(".csv")]
    for name, content in archive.read(tables, max_bytes=_LARGEST_TABLE).items():
        header = content.partition(b"\n")[0].decode("utf-8-sig", errors="replace").casefold()
        columns = {column.strip() for column in header.split(",")}
        if columns & {"image_id", "id_code"} and columns & {"adjudicated_dr_grade", "adjudicated_gradable"}:
            kinds["grades"].append(name)
        elif columns == {"left;right"} or columns == {"left", "right"}:
            kinds["pairs"].append(name)
    return _tables(archive, kinds["grades"]), _tables(archive, kinds["pairs"])


def _is_messidor(archive: Archive) -> bool:
    return bool(_messidor_tables(archive)[0])


def _lay_out_messidor(archive: Archive) -> CohortLayout:
    grades, pairs = _messidor_tables(archive)
    for kind, found in (("grades", grades), ("pairs", pairs)):
        if len(found) > 1:
            raise UserError(
                f"{archive.path}: holds {len(found)} tables of {kind}: {examples(found)}; keep one of them."
            )
    name, table = next(iter(grades.items()))
    table = table.rename(columns=str.casefold)
    identifier = "image_id" if "image_id" in table.columns else "id_code"
    grade = "adjudicated_dr_grade" if "adjudicated_dr_grade" in table.columns else "diagnosis"
    _require(table, (identifier, grade, "adjudicated_gradable"), archive, name)
    gradable = table["adjudicated_gradable"].map(_whole_number)
    if unknown := sorted(set(gradable) - {"0", "1"}):
        raise UserError(f"{archive.path}: {name}: adjudicated_gradable is 0 or 1; got {examples(unknown)}.")
    left_out = [
        (identity, "ungradable", "adjudicated_gradable is 0") for identity in table.loc[gradable == "0", identifier]
    ]
    ungradable = {_stem(identity) for identity in table.loc[gradable == "0", identifier]}
    table = table[gradable == "1"]
    images = _index_images(archive, lambda _: True)
    images = {stem: member for stem, member in images.items() if stem not in ungradable}
    rows, unmatched = _match(table[identifier], images, folder="")
    rows = rows.assign(grade=table[grade].map(_whole_number).loc[rows.index])
    if "adjudicated_dme" in table.columns:
        rows = rows.assign(macular_edema=table["adjudicated_dme"].map(_whole_number).loc[rows.index])
    if not pairs:
        notes = [
            "The table of pairs (messidor-2.csv, left;right) is not in the archive, so that nobody can say which two "
            "images are of one person: each image counts as a person of its own, and both eyes of one may stand in "
            "two splits. Put the table beside the images and prepare again."
        ]
    else:
        exam_of = _examinations(next(iter(pairs.values())), archive)
        alone = [stem for stem in map(_stem, rows["image"]) if stem not in exam_of]
        rows = rows.assign(patient=[exam_of.get(_stem(image), f"single_{_stem(image)}") for image in rows["image"]])
        notes = ["A patient is an examination of the table of pairs: both eyes of one visit."]
        if alone:
            notes.append(f"{len(alone)} images stand in no pair and count as people of their own.")
    return _layout(rows, [*left_out, *unmatched], notes)


def _examinations(pairs: pd.DataFrame, archive: Archive) -> dict[str, str]:
    exam_of: dict[str, str] = {}
    for number, row in enumerate(pairs.itertuples(index=False), 1):
        for image in ";".join(str(cell) for cell in row).split(";"):
            if image.strip() and exam_of.setdefault(_stem(image), f"exam_{number:04d}") != f"exam_{number:04d}":
                raise UserError(f"{archive.path}: {image.strip()!r} stands in two examinations of the table of pairs.")
    return exam_of


# IDRiD

_IDRID_TABLE = re.compile(r"disease[ _]grading[ _](train|test)ing[ _]labels\.csv$", re.IGNORECASE)
_IDRID_FOLDER = re.compile(r"^(?:[ab]\.[ _]?)?(train|test)(?:ing)?(?:[ _]set)?$", re.IGNORECASE)


def _idrid_tables(archive: Archive) -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {"train": [], "test": []}
    for name in archive.members:
        if found := _IDRID_TABLE.search(name):
            tables[found[1].casefold()].append(name)
    return tables


def _is_idrid(archive: Archive) -> bool:
    return all(_idrid_tables(archive).values())


def _lay_out_idrid(archive: Archive) -> CohortLayout:
    tables = _idrid_tables(archive)
    if twice := [names for names in tables.values() if len(names) > 1]:
        raise UserError(f"{archive.path}: holds {examples(twice[0])}; keep one of these tables.")
    parts: list[pd.DataFrame] = []
    left_out: list[tuple[str, str, str]] = []
    for split, (name,) in tables.items():
        table = _tables(archive, [name])[name]
        _require(table, ("Image name", "Retinopathy grade", "Risk of macular edema"), archive, name)
        root = _parent(name)
        if "groundtruth" in PurePosixPath(root).name.casefold():
            root = _parent(root)
        images = _index_images(archive, lambda member: _idrid_split(member, root) == split)  # noqa: B023 used at once
        rows, unmatched = _match(table["Image name"], images, folder=split)
        parts.append(
            rows.assign(
                grade=table["Retinopathy grade"].map(_whole_number).loc[rows.index],
                macular_edema=table["Risk of macular edema"].map(_whole_number).loc[rows.index],
                published_split=split,
            )
        )
        left_out += unmatched
    notes = [
        "The same file name in train and test is another person's image, so that each split has a folder of its own.",
        "IDRiD publishes no patients: images of one person may stand in two splits.",
    ]
    return _layout(pd.concat(parts, ignore_index=True), left_out, notes)


def _idrid_split(member: str, root: str) -> str | None:
    """The published split whose folder an image below `root` lies in."""
    if root and not member.startswith(f"{root}/"):
        return None
    for part in reversed(PurePosixPath(member.removeprefix(root)).parts[:-1]):
        if found := _IDRID_FOLDER.match(part):
            return found[1].casefold()
    return None


# what the layouts share


def _layout(rows: pd.DataFrame, left_out: Iterable[tuple[str, str, str]], notes: Sequence[str]) -> CohortLayout:
    empty = {column: "" for column in IMAGE_COLUMNS if column not in rows.columns}
    images = rows.assign(**empty)[list(IMAGE_COLUMNS)].sort_values("image", ignore_index=True)
    return CohortLayout(
        images.astype("str"), pd.DataFrame(list(left_out), columns=list(LEFT_OUT_COLUMNS)), tuple(notes)
    )


def _match(
    identities: pd.Series, images: dict[str, str], *, folder: str
) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """Rows whose image is there, and what stays over on either side."""
    members = identities.map(lambda identity: images.get(_stem(identity), ""))
    missing = [
        (identity, MISSING, f"the table lists it, line {line}") for line, identity in identities[members == ""].items()
    ]
    members = members[members != ""]
    used = set(members)
    unlabelled = [
        (member, "image without a grade", "no row of the table names it")
        for member in images.values()
        if member not in used
    ]
    paths = [PurePosixPath(folder, PurePosixPath(member).stem + _suffix(member)).as_posix() for member in members]
    return pd.DataFrame({"member": members, "image": paths}, index=members.index), [*missing, *unlabelled]


def _index_images(archive: Archive, is_wanted: Callable[[str], bool]) -> dict[str, str]:
    """Stem, in small letters, → member: tables write ``.jpg`` for files that end in ``.JPG``, or no ending at all."""
    found: dict[str, str] = {}
    for member in archive.members:
        if _suffix(member) in _SUFFIXES and is_wanted(member):
            stem = _stem(member)
            if stem in found:
                raise UserError(
                    f"{archive.path}: {found[stem]!r} and {member!r} have one name; leave the folder out that is not "
                    f"meant, such as a preprocessed copy."
                )
            found[stem] = member
    return found


def _images_below(archive: Archive, root: str, folder: str) -> list[str]:
    return [name for name in archive.members if _suffix(name) in _SUFFIXES and _is_below(name, root, folder)]


def _tables(archive: Archive, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Tables of the archive, read as :func:`vitreous.samples.tables.read_table` reads any other."""
    frames = {}
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / "table.csv"
        for name, content in archive.read(names, max_bytes=_LARGEST_TABLE).items():
            aside.write_bytes(content)
            frames[name] = read_table(aside, f"{archive.path}: {name}").frame
    return frames


def _require(table: pd.DataFrame, columns: Sequence[str], archive: Archive, name: str) -> None:
    problems = Problems(f"{archive.path}: {name}")
    if missing := [column for column in columns if column not in table.columns]:
        problems.add(f"no column {examples(missing)}; found {list(table.columns)}.")
        problems.check_none()
    for column in columns[:1]:
        if is_missing(table[column]).any():
            problems.add(f"lines {examples(table.index[is_missing(table[column])])} have no {column}.")
    problems.check_none()


def _whole_number(cell: str) -> str:
    """``2`` for ``2.0``, as spreadsheets and data frames with gaps write it; other text stays.

    >>> _whole_number("2.0"), _whole_number("2"), _whole_number("2.5")
    ('2', '2', '2.5')
    """
    return re.sub(r"^(\d+)\.0+$", r"\1", cell)


def _named(archive: Archive, name: str) -> list[str]:
    return [member for member in archive.members if PurePosixPath(member).name.casefold() == name]


def _is_below(member: str, root: str, folder: str) -> bool:
    prefix = f"{root}/{folder}/" if root else f"{folder}/"
    return member.casefold().startswith(prefix.casefold())


def _parent(name: str) -> str:
    return "" if "/" not in name else name.rpartition("/")[0]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _stem(name: str) -> str:
    """File name in small letters, without a known image ending."""
    path = PurePosixPath(name.strip())
    return (path.stem if path.suffix.lower() in _SUFFIXES else path.name).casefold()


PUBLIC_COHORTS: dict[CohortName, PublicCohort] = {
    "aptos": PublicCohort(
        title="APTOS 2019 Blindness Detection",
        source="Asia Pacific Tele-Ophthalmology Society and Aravind Eye Hospital, Kaggle competition of 2019",
        licence="the rules of the competition, accepted at the download",
        looks_for="train.csv with id_code and diagnosis, and images below train_images/",
        is_found=_is_aptos,
        lay_out=_lay_out_aptos,
    ),
    "messidor": PublicCohort(
        title="Messidor-2",
        source="images: Decencière et al., Image Anal Stereol 33:231 (2014), kindly provided by the Messidor program "
        "partners; grades: adjudicated by three retina specialists, Krause et al., Ophthalmology 125:1264 (2018)",
        licence="images free of charge for research and education only, no copies and no redistribution",
        looks_for="a table with image_id (or id_code), adjudicated_dr_grade (or diagnosis) and adjudicated_gradable, "
        "which is downloaded apart from the images: put both into one folder",
        is_found=_is_messidor,
        lay_out=_lay_out_messidor,
    ),
    "idrid": PublicCohort(
        title="IDRiD, part B (disease grading)",
        source="Porwal et al., Indian Diabetic Retinopathy Image Dataset, Data 3:25 (2018)",
        licence="CC BY 4.0",
        looks_for="'IDRiD_Disease Grading_Training Labels.csv' and '… Testing Labels.csv', and images in a folder of "
        "the training and one of the testing set",
        is_found=_is_idrid,
        lay_out=_lay_out_idrid,
    ),
}
