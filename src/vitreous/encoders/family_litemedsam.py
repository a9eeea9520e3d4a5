"""Family `litemedsam`: the TinyViT image encoder of LiteMedSAM, for images, and for volumes slice by slice."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field

from vitreous.core.input_spec import ImageSpec, InputSpec, PercentileMinMaxGamma
from vitreous.encoders.family import Architecture, Family, Inferred
from vitreous.encoders.frame_by_frame import clip_spec_of
from vitreous.encoders.slices import SLICE_SIZE, SliceTinyViT
from vitreous.encoders.tiny_vit import TinyViTShape

Positive = Annotated[int, Field(gt=0)]


class LiteMedSAMArchitecture(Architecture):
    """How the published TinyViT meets a volume; the network itself has one published shape.

    `num_slices` are taken evenly along D by the resize of the InputSpec; time grows with it.
    """

    num_slices: Positive = 8
    token_grid: tuple[Positive, Positive] = (8, 8)
    normalise_slices: bool = True


def _infer(
    where: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], options: Mapping[str, Any]
) -> Inferred:
    """Options and their defaults; the shape of the network is the published one, or the match is refused."""
    architecture = LiteMedSAMArchitecture(**options)
    return Inferred(architecture, {"shape": f"the published one: {TinyViTShape()}"})


def _build(architecture: LiteMedSAMArchitecture) -> SliceTinyViT:
    return SliceTinyViT(TinyViTShape(), architecture.token_grid, architecture.normalise_slices)


def _volume_spec(architecture: LiteMedSAMArchitecture) -> InputSpec:
    """Slices of 256×256 pixels, the volume clipped to its 0.5 and 99.5 percentiles, in [0, 1], as three channels.

    Source: bowang-lab/MedSAM, pre_CT_MR.py and CVPR24_LiteMedSAM_infer.py. Two differences: the published clip
    counts only voxels above 0, and its slices keep their aspect with a zero border; here slices are resized.
    """
    return InputSpec(
        size=(architecture.num_slices, SLICE_SIZE, SLICE_SIZE),
        channels=3,
        normalisation=PercentileMinMaxGamma(lower_percentile=0.5, upper_percentile=99.5, gamma=1.0),
    )


def _image_spec(architecture: LiteMedSAMArchitecture) -> ImageSpec:
    """The longer side to 256 pixels, a border of zeros, values from 0 to 1.

    The network then brings each image to [0, 1] by its own minimum and maximum (`normalise_slices`).

    Source: bowang-lab/MedSAM, CVPR24_LiteMedSAM_infer.py. Two differences: the published border lies below and to the
    right, and is added after the minimum and maximum are taken.
    """
    return ImageSpec(
        size=(SLICE_SIZE, SLICE_SIZE), resize="pad", interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )


LITEMEDSAM = Family(
    architecture=LiteMedSAMArchitecture,
    build=_build,
    infer=_infer,
    default_specs={
        "volume": _volume_spec,
        "image": _image_spec,
        "clip": lambda architecture: clip_spec_of(_image_spec(architecture)),
    },
    anchor="patch_embed.seq.0.c.weight",
    prefixes={"only": ("image_encoder.", "")},
    rules={"only": {"mask decoder": ("mask_decoder.",), "prompt encoder": ("prompt_encoder.",)}},
    options=frozenset(LiteMedSAMArchitecture.model_fields),
    fixed={"image": {"num_slices": 1}, "clip": {"num_slices": 1}},
)
