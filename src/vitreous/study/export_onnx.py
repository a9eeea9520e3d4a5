"""An exported model as ONNX, run by ONNX Runtime against torch before it is kept."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from vitreous.core.errors import RunError, UserError
from vitreous.core.files import replacing
from vitreous.recipes.exported_timm import relative_difference

ONNX_FILE = "model.onnx"
MOST_DIFFERENCE = 1e-3
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_onnx_packages() -> None:
    """Refuse `--onnx` where it could not be done.

    Raises:
        UserError: a package is missing.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"--onnx needs {', '.join(missing)}; install them with: pip install 'vitreous[export]'.")


def write_onnx(model: nn.Module, x: torch.Tensor, folder: Path) -> float:
    """Write ``model.onnx`` (input ``input``, output ``logits``, any batch size) if ONNX Runtime agrees with torch.

    Args:
        x: normalised inputs of one batch, on which both are run; and the first of it alone.

    Returns:
        The largest difference of logits, relative to the largest logit.

    Raises:
        UserError: the network cannot be said in ONNX.
        RunError: the difference is above 1e-3; nothing is kept.
    """
    traced = x if len(x) > 1 else torch.cat([x, x])  # a batch of one would be taken for a constant
    with replacing(folder / ONNX_FILE) as aside:
        with _quiet():
            try:
                program = torch.onnx.export(
                    model,
                    (traced,),
                    dynamo=True,
                    verbose=False,
                    input_names=["input"],
                    output_names=["logits"],
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                )
            except (torch.onnx.OnnxExporterError, RuntimeError) as error:
                first = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"--onnx: this network cannot be exported to ONNX ({type(error).__name__}: {first}). "
                    "Leave --onnx out; model.safetensors holds the whole model."
                ) from error
        assert program is not None
        program.save(str(aside), external_data=False)
        difference = _difference(model, aside, x)
        if not difference <= MOST_DIFFERENCE:
            raise RunError(
                f"--onnx: ONNX Runtime's logits differ from torch's by {difference:.1e} of the largest logit; at most "
                f"{MOST_DIFFERENCE:.0e} is allowed. Nothing was kept as ONNX; leave --onnx out."
            )
    return difference


def _difference(model: nn.Module, path: Path, x: torch.Tensor) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    differences = []
    for batch in (x, x[:1]):
        with torch.no_grad():
            expected_BC = model(batch)
        (found_BC,) = session.run(["logits"], {"input": batch.numpy()})
        differences.append(relative_difference(torch.from_numpy(found_BC), expected_BC))
    return max(differences)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps, and warns of what torch itself will change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
