"""The segmentation decoder and its loss. Oracle: torch's mean cross-entropy row by row, and maps that tokens show."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vitreous.core.errors import SampleError
from vitreous.encoders.encoder import Tokens
from vitreous.recipes.segmentation import SegmentationDecoder, mask_class_weights, segmentation_losses

IGNORE = 255


def test_losses_are_torchs_means_row_by_row() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(4, 5, 8, 8, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, 5, (4, 8, 8), generator=generator)
    masks[torch.rand(4, 8, 8, generator=generator) < 0.3] = IGNORE
    masks[2] = IGNORE
    weight = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    found = segmentation_losses(maps, masks, weight, ignore_index=IGNORE)
    for row in (0, 1, 3):
        expected = F.cross_entropy(maps[row : row + 1], masks[row : row + 1], weight=weight, ignore_index=IGNORE)
        torch.testing.assert_close(found[row], expected)
    assert found[2] == 0
    maps.requires_grad_()
    segmentation_losses(maps, masks, weight, ignore_index=IGNORE).sum().backward()
    assert maps.grad is not None
    assert not maps.grad[2].any()
    assert not maps.grad.permute(0, 2, 3, 1)[masks == IGNORE].any()


def test_the_decoder_learns_a_map_that_tokens_show() -> None:
    torch.manual_seed(0)
    decoder = SegmentationDecoder(6, num_classes=2, size=(16, 16), seed=0)
    tokens_BND = torch.randn(16, 2 * 4 * 4, 6)
    shown_Bhw = tokens_BND.unflatten(1, (2, 4, 4)).mean(1)[..., 0] > 0
    masks = shown_Bhw.long().repeat_interleave(4, 1).repeat_interleave(4, 2)
    tokens, weight = Tokens(tokens_BND, (2, 4, 4)), torch.ones(2)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        segmentation_losses(decoder(tokens), masks, weight, ignore_index=IGNORE).mean().backward()
        optimizer.step()
    assert (decoder(tokens).argmax(1) == masks).float().mean() > 0.8


def test_first_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = SegmentationDecoder(6, num_classes=2, size=(8, 8), seed=3).state_dict()
    torch.manual_seed(2)
    second = SegmentationDecoder(6, num_classes=2, size=(8, 8), seed=3).state_dict()
    other = SegmentationDecoder(6, num_classes=2, size=(8, 8), seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["layers.output.weight"], other["layers.output.weight"])


def test_class_weights_that_cannot_be() -> None:
    with pytest.raises(SampleError, match="no row has a mask"):
        mask_class_weights("none", np.zeros(3, np.int64))
    with pytest.raises(SampleError, match="no mask has a pixel of class 1"):
        mask_class_weights("balanced", np.array([4, 0, 2]))
    assert mask_class_weights((1.0, 2.0), np.array([1, 1])).tolist() == [1.0, 2.0]
