"""From what was decoded to what an encoder takes, in two steps: `prepare_input` is kept, `finish_input` is cheap.

Augmentation of images and clips works between the two, on values from 0 to 1; that of volumes after them.

Axes: C channel, D slice, H row, W column; an image is a volume of one slice, a clip's frames are its slices.
"""

from typing import Any

import torch

from vitreous.core.errors import InputError
from vitreous.core.input_spec import AnySpec, ClipSpec, ImageSpec, InputSpec, PictureSpec, item_noun, modality_of
from vitreous.inputs.clip import Clip
from vitreous.inputs.clip_preprocessing import clip_frames, prepare_clip
from vitreous.inputs.description import clip_statistics, image_statistics, volume_statistics
from vitreous.inputs.image import Image
from vitreous.inputs.image_preprocessing import normalise_image, prepare_image
from vitreous.inputs.preprocessing import preprocess_volume
from vitreous.inputs.volume import Volume

Decoded = Volume | Image | Clip


def prepare_input(decoded: Decoded, spec: AnySpec) -> torch.Tensor:
    """All of the spec that needs the decoded file.

    Returns:
        (C, D, H, W): a volume normalised, float32; an image of its final size, uint8, or float32 in [0, 1] where the
        file has 16 bits; a clip's frames of their final size, uint8.

    Raises:
        InputError: the file cannot be brought to the spec.
    """
    match decoded, spec:
        case Volume(), InputSpec():
            return preprocess_volume(decoded, spec)
        case Image(), ImageSpec():
            return prepare_image(decoded, spec)
        case Clip(), ClipSpec():
            return prepare_clip(decoded, spec)
    what = "an image" if isinstance(decoded, Image) else "a clip" if isinstance(decoded, Clip) else "a volume"
    raise InputError(f"the file is {what}, and the encoder takes {item_noun(modality_of(spec))}.")


def finish_input(prepared_CDHW: torch.Tensor, spec: AnySpec) -> torch.Tensor:
    """The encoder's input, float32, from what `prepare_input` gave; leading batch axes are allowed."""
    return normalise_image(prepared_CDHW, spec) if isinstance(spec, PictureSpec) else prepared_CDHW


def describe_decoded(decoded: Decoded) -> dict[str, Any]:
    """Numbers that describe the decoded file, as a flat row.

    Raises:
        InputError: the frame of a clip that is described cannot be decoded.
    """
    match decoded:
        case Image():
            return image_statistics(decoded)
        case Clip():
            return clip_statistics(decoded)
        case Volume():
            return volume_statistics(decoded)


def describe_prepared(decoded: Decoded, spec: AnySpec) -> dict[str, Any]:
    """Numbers that describe what `prepare_input` made of the file for one spec.

    Returns:
        of a clip ``padded_frames``, how many repeat another since the stretch does not reach further, and ``is_short``,
        whether it has fewer than the encoder needs; of others nothing.
    """
    if isinstance(decoded, Clip) and isinstance(spec, ClipSpec):
        sampled = clip_frames(decoded, spec)
        return {"padded_frames": sampled.num_padded, "is_short": sampled.is_short}
    return {}
