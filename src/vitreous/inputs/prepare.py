"""From what was decoded to what an encoder takes, in two steps: `prepare_input` is kept, `finish_input` is cheap.

Augmentation of images works between the two, on values from 0 to 1; that of volumes after them.

Axes: C channel, D slice, H row, W column; an image is a volume of one slice.
"""

from typing import Any

import torch

from vitreous.core.errors import InputError
from vitreous.core.input_spec import AnySpec, ImageSpec, InputSpec
from vitreous.inputs.description import image_statistics, volume_statistics
from vitreous.inputs.image import Image
from vitreous.inputs.image_preprocessing import normalise_image, prepare_image
from vitreous.inputs.preprocessing import preprocess_volume
from vitreous.inputs.volume import Volume

Decoded = Volume | Image


def prepare_input(decoded: Decoded, spec: AnySpec) -> torch.Tensor:
    """All of the spec that needs the decoded file.

    Returns:
        (C, D, H, W): a volume normalised, float32; an image of its final size, uint8, or float32 in [0, 1] where the
        file has 16 bits.

    Raises:
        InputError: the file cannot be brought to the spec.
    """
    match decoded, spec:
        case Volume(), InputSpec():
            return preprocess_volume(decoded, spec)
        case Image(), ImageSpec():
            return prepare_image(decoded, spec)
    what = "an image" if isinstance(decoded, Image) else "a volume"
    raise InputError(
        f"the file is {what}, and the encoder takes {'images' if isinstance(spec, ImageSpec) else 'volumes'}."
    )


def finish_input(prepared_CDHW: torch.Tensor, spec: AnySpec) -> torch.Tensor:
    """The encoder's input, float32, from what `prepare_input` gave; leading batch axes are allowed."""
    return normalise_image(prepared_CDHW, spec) if isinstance(spec, ImageSpec) else prepared_CDHW


def describe_decoded(decoded: Decoded) -> dict[str, Any]:
    """Numbers that describe the decoded file, as a flat row."""
    return image_statistics(decoded) if isinstance(decoded, Image) else volume_statistics(decoded)
