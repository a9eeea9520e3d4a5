"""Logits of a pixel model, and what they are worth on val.

Axes: N row, B row of a batch, C class.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch

from vitreous.core.errors import RunError
from vitreous.core.input_spec import AnySpec
from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.task_scores import score_rows, with_chosen_thresholds
from vitreous.recipes.batches import batch_bounds
from vitreous.recipes.pixel_inputs import InputLoader, Key, PreparedRows, finish_stacked
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_settings import PixelSet, Precision

Forward = Callable[[torch.Tensor], torch.Tensor]


class NotFiniteError(RunError):
    """Logits are NaN or infinite."""


def predict_pixels(
    model: PixelModel,
    data: PixelSet,
    *,
    batch_size: int,
    device: str,
    precision: Precision,
    workers: int = 0,
    on_maps: Callable[[torch.Tensor], None] | None = None,
) -> npt.NDArray[np.float64]:
    """Logits (N, C) of every row in order, nothing augmented; the model is left on `device` and in eval mode.

    Args:
        batch_size: part of the result's last bits.
        precision: fp32 is the model's own; bf16 computes matrix products in it.
        on_maps: of a model with a decoder, given its logits (B, K, H, W) of each batch, rows in order.

    Raises:
        NotFiniteError: logits that are not finite.
    """
    model.to(device)
    loader = InputLoader(PreparedRows(data), workers=workers, is_pinned=torch.device(device).type == "cuda")
    finish = input_finisher(model, data.spec, device)
    batches = loader.load(plain_batches(len(data), batch_size))
    with model.returning_maps(on_maps is not None):
        return run_batches(
            model, lambda x: hand_over_maps(model, model(finish(x)), on_maps), batches, precision=precision
        )


def hand_over_maps(
    model: PixelModel, out_B: torch.Tensor, on_maps: Callable[[torch.Tensor], None] | None
) -> torch.Tensor:
    """The logits alone; the decoder's maps go to `on_maps`."""
    logits_BC, maps_BKHW = model.split_maps(out_B)
    if maps_BKHW is not None and on_maps is not None:
        on_maps(maps_BKHW)
    return logits_BC


def run_batches(
    model: PixelModel,
    forward: Forward,
    batches: Iterable[torch.Tensor],
    *,
    precision: Precision,
    after_batch: Callable[[], None] = lambda: None,
) -> npt.NDArray[np.float64]:
    """Logits (N, C) in eval mode, in which the model is left.

    Args:
        after_batch: called after each.

    Raises:
        NotFiniteError: logits that are not finite.
    """
    model.eval()
    logits = []
    with torch.no_grad(), autocast(model, precision):
        for x_B in batches:
            logits.append(forward(x_B))
            after_batch()
    logits_NC = torch.cat(logits).cpu().double().numpy()  # some accelerators have no float64
    if broken := int((~np.isfinite(logits_NC)).any(axis=1).sum()):
        raise NotFiniteError(
            f"the logits of {broken} of {len(logits_NC)} rows are NaN or infinite. "
            "Lower lr_head and lr_encoder, lengthen warmup_epochs, or set precision: fp32."
        )
    return logits_NC


def score_logits(logits_NC: npt.NDArray[np.float64], data: PixelSet, metric: str) -> float:
    """The metric of what `data` scores: participants (mean probability over the participant's rows), or rows.

    Raises:
        RunError: it is undefined on these rows.
    """
    names = tuple(str(c) for c in range(logits_NC.shape[1]))
    rows = np.arange(len(data)).astype(np.str_)
    scored = Predictions(rows, data.patient_id_N, data.y_N, logits_NC, names, task=data.task).scored(data.aggregate)
    score = score_rows(with_chosen_thresholds(scored, scored))[metric]
    if isinstance(score, Undefined):
        raise RunError(f"{metric} on val is undefined: {score.reason}. Monitor another metric or change the split.")
    return round(float(score), 12)  # equal recalls summed in another order must tie


def plain_batches(num_rows: int, batch_size: int) -> list[list[Key]]:
    """Every row in order, unchanged; always the same batches."""
    return [[(row, None) for row in range(start, stop)] for start, stop in batch_bounds(num_rows, batch_size)]


def input_finisher(model: PixelModel, spec: AnySpec, device: str | torch.device) -> Forward:
    """From a batch of an `InputLoader` to what the model takes, on the device and in the model's precision."""
    weight = next(model.head.parameters())

    def finish(x_BCDHW: torch.Tensor) -> torch.Tensor:
        finished = finish_stacked(x_BCDHW.to(device, non_blocking=True), spec)
        return finished.double() if weight.dtype == torch.float64 else finished

    return finish


def autocast(model: PixelModel, precision: Precision) -> torch.autocast:
    """bf16 matrix products where asked for."""
    place = next(model.head.parameters()).device.type
    return torch.autocast(place, dtype=torch.bfloat16, enabled=precision == "bf16")
