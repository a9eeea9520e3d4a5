"""What `vitreous explain` writes of each sample, and the tables and page over all of a folder.

Axes: T, H, W of the token grid; D, H, W of a volume; C channel.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from vitreous.core.files import replacing, write_bytes, write_json
from vitreous.core.input_spec import AnySpec, InputSpec
from vitreous.diagnosis.attention_statistics import SampleAttention
from vitreous.diagnosis.faithfulness import CheckedMap
from vitreous.inputs.nifti import read_decoded_affine
from vitreous.reports.explain_figures import Kind, ShownInput, ShownMap, entropy_png, overview_png, slices_png
from vitreous.reports.explain_page import PageSample, write_page
from vitreous.study.explain_samples import LoadedSample

RESULT = "result.json"
SCHEMA_VERSION = 1
_COLUMNS = [
    "sample", "split", "label", "predicted", "target", "probability", "method", "verdict", "failed", "deletion",
    "insertion", "random_mean", "random_low", "random_high", "encoder_correlation", "encoder_ssim", "head_correlation",
    "head_ssim", "map",
]  # fmt: skip
_PICTURE_PERCENTILES = (1.0, 99.0)


def write_sample(
    folder: Path,
    loaded: LoadedSample,
    spec: AnySpec,
    kind: Kind,
    maps: Mapping[str, CheckedMap],
    facts: Mapping[str, Any],
    attention: Mapping[str, SampleAttention],
) -> None:
    """Maps, figures and, last of all, ``result.json`` of one sample.

    Args:
        facts: of the sample: its keyed id, split, target, probability, what was predicted.
        attention: ``frozen`` and ``adapted`` encoder, ``pooling`` of an attentive probe → its attention.
    """
    shown = ShownInput(_picture(loaded, spec), kind, _extent(loaded, spec), _title(facts))
    drawn = [_shown_map(method, one) for method, one in maps.items()]
    rows = []
    for one in drawn:
        suffix = ".nii.gz" if kind == "volume" else ".npy"
        _write_map(folder / f"{one.method}{suffix}", one.map_THW, loaded, spec)
        if kind != "image":
            sheet = f"{one.method}_{'slices' if kind == 'volume' else 'frames'}.png"
            write_bytes(folder / sheet, slices_png(shown, one))
        rows.append(_row(facts, one.method, maps[one.method], f"{facts['sample']}/{one.method}{suffix}"))
    if drawn:
        write_bytes(folder / "overview.png", overview_png(shown, drawn))
    write_json(
        folder / RESULT,
        {**facts, "rows": rows, "attention": {state: _attention_json(one) for state, one in attention.items()}},
    )


def write_tables(out: Path, model: str) -> None:
    """``explanations.csv``, ``attention.csv``, ``attention_samples.csv``, ``attention.png`` and ``index.html``."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob(f"*/{RESULT}"))]
    rows = [row for result in results for row in result["rows"]]
    _write_csv(out / "explanations.csv", rows, _COLUMNS)
    with_attention = [result for result in results if result["attention"]]
    if with_attention:
        _write_attention(out, with_attention, model)
    samples = [
        PageSample(
            result["sample"],
            result["split"],
            result["target"],
            result["probability"],
            result["rows"],
            sorted(path.name for path in (out / result["sample"]).glob("*_*.png")),
        )
        for result in results
        if result["rows"]
    ]
    write_page(out / "index.html", model=model, samples=samples, attention=(out / "attention.png").exists())


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: list[str] | None = None) -> None:
    with replacing(path) as aside:
        pd.DataFrame(rows, columns=columns).assign(schema_version=SCHEMA_VERSION).to_csv(
            aside, index=False, float_format="%.6g"
        )


def _write_attention(out: Path, results: Sequence[Mapping[str, Any]], model: str) -> None:
    heads: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for result in results:
        for state, one in result["attention"].items():
            known = {"sample": result["sample"], "state": state}
            samples.append(
                {
                    **known,
                    "mean_entropy": one["mean"],
                    "lowest": one["lowest"],
                    "highest": one["highest"],
                    "spread": one["spread"],
                    "largest_weight": one["largest_weight"],
                    "tokens": one["num_tokens"],
                    "predicted": result["predicted"],
                    "predicted_probability": result["predicted_probability"],
                }
            )
            heads += [
                {**known, "layer": layer, "head": head, **{name: values[name][head] for name in values}}
                for layer, values in enumerate(one["layers"])
                for head in range(len(values["entropy"]))
            ]
    _write_csv(out / "attention.csv", heads)
    _write_csv(out / "attention_samples.csv", samples)
    states = [state for state in ("frozen", "adapted") if all(state in result["attention"] for result in results)]
    means = [
        (
            state,
            np.mean(
                [[layer["entropy"] for layer in result["attention"][state]["layers"]] for result in results], axis=0
            ).tolist(),
        )
        for state in states
    ]
    if means:
        write_bytes(out / "attention.png", entropy_png(means, len(results), f"Attention of {model}"))


def _attention_json(one: SampleAttention) -> dict[str, Any]:
    return {
        "num_tokens": one.num_tokens,
        "mean": one.mean,
        "lowest": one.lowest,
        "highest": one.highest,
        "spread": one.spread,
        "largest_weight": one.largest_weight,
        "layers": [
            {
                "entropy": layer.mean_H.tolist(),
                "lowest": layer.lowest_H.tolist(),
                "highest": layer.highest_H.tolist(),
                "spread": layer.spread_H.tolist(),
                "largest_weight": layer.largest_weight_H.tolist(),
            }
            for layer in one.layers
        ],
    }


def _row(facts: Mapping[str, Any], method: str, one: CheckedMap, place: str) -> dict[str, Any]:
    checks = one.checks
    return {
        **{key: facts[key] for key in ("sample", "split", "label", "predicted", "target", "probability")},
        "method": method,
        "verdict": "faithful" if checks.is_faithful else "not faithful",
        "failed": ", ".join(checks.failures),
        "deletion": checks.deletion,
        "insertion": checks.insertion,
        "random_mean": checks.random.mean,
        "random_low": checks.random.low,
        "random_high": checks.random.high,
        "encoder_correlation": checks.encoder_correlation,
        "encoder_ssim": checks.encoder_ssim,
        "head_correlation": checks.head_correlation,
        "head_ssim": checks.head_ssim,
        "map": place,
    }


def _shown_map(method: str, one: CheckedMap) -> ShownMap:
    checks = one.checks
    return ShownMap(
        method,
        one.map_THW,
        checks.failures,
        checks.deletion,
        checks.insertion,
        (checks.random.mean, checks.random.low, checks.random.high),
        checks.share_S,
        checks.deletion_curve,
        checks.insertion_curve,
        checks.random_curve,
    )


def _title(facts: Mapping[str, Any]) -> str:
    text = f"{facts['sample']}: {facts['target']} {facts['probability']:.3f}"
    if facts["predicted"] != facts["target"]:
        text += f" (predicted {facts['predicted']} {facts['predicted_probability']:.3f})"
    return text + (f", val label {facts['label']}" if facts["label"] else "")


def _picture(loaded: LoadedSample, spec: AnySpec) -> npt.NDArray[np.float32]:
    """(T, H, W, C) in [0, 1]: of a volume between its 1st and 99th percentile."""
    values_CDHW = loaded.prepared_CDHW
    if values_CDHW.dtype == torch.uint8:
        picture = values_CDHW.numpy().astype(np.float32) / 255
    else:
        picture = values_CDHW.float().numpy()
        if isinstance(spec, InputSpec):
            low, high = np.percentile(picture, _PICTURE_PERCENTILES)
            picture = np.clip((picture - low) / max(high - low, 1e-6), 0, 1)
    if len(picture) == 3 and np.array_equal(picture[0], picture[1]) and np.array_equal(picture[0], picture[2]):
        picture = picture[:1]
    return np.ascontiguousarray(np.moveaxis(picture, 0, -1))


def _extent(loaded: LoadedSample, spec: AnySpec) -> tuple[float, float, float] | None:
    """Of what the encoder saw of a volume, in millimetres along D, H, W."""
    if not isinstance(spec, InputSpec) or loaded.spacing_mm is None:
        return None
    sizes = spec.size if spec.spacing_mm is not None else loaded.shape_DHW
    spacings = spec.spacing_mm if spec.spacing_mm is not None else loaded.spacing_mm
    depth, rows, columns = (size * spacing for size, spacing in zip(sizes, spacings, strict=True))
    return depth, rows, columns


def write_array(path: Path, values: npt.NDArray[np.float32]) -> None:
    """NPY, whole or not at all."""
    with replacing(path) as aside, aside.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def _write_map(path: Path, map_THW: npt.NDArray[np.float32], loaded: LoadedSample, spec: AnySpec) -> None:
    if path.suffix == ".npy":
        write_array(path, map_THW)
        return
    from nibabel import Nifti1Image

    affine = map_affine(map_THW.shape, loaded, spec)
    image: Any = cast(Any, Nifti1Image)(np.ascontiguousarray(map_THW.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm" if loaded.spacing_mm is not None else "unknown")
    write_bytes(path, gzip.compress(image.to_bytes(), mtime=0))


def map_affine(grid: tuple[int, ...], loaded: LoadedSample, spec: AnySpec) -> npt.NDArray[np.float64]:
    """(w, h, d, 1) of a cell → millimetres right, anterior, superior of its centre.

    Where the file is a NIfTI with an affine, cells lie where they lie in the scan. Elsewhere the origin is the first
    voxel and the axes are those of axial slices, with the spacing that is known, or 1.
    """
    spacing = loaded.spacing_mm or (1.0, 1.0, 1.0)
    if loaded.is_oriented:
        of_voxels = read_decoded_affine(loaded.path)
    else:
        of_voxels = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    of_cells = np.eye(4)
    for axis in range(3):
        size = spec.size_DHW[axis]
        count, cell = loaded.shape_DHW[axis], size / grid[axis]
        is_resampled = isinstance(spec, InputSpec) and spec.spacing_mm is not None
        step = spec.spacing_mm[axis] / spacing[axis] if is_resampled else count / size  # type: ignore[union-attr, index]
        place = 2 - axis  # of D, H, W among w, h, d
        of_cells[place, place] = cell * step
        of_cells[place, 3] = (cell / 2 - size / 2) * step + count / 2 - 0.5
    placed: npt.NDArray[np.float64] = of_voxels @ of_cells
    return placed
