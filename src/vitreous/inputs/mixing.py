"""MixUp and CutMix of a batch, for images (4-D, or 5-D of one slice) and volumes (5-D).

Axes: B batch, C channel or class, D slice, H row, W column.
"""

import numpy as np
import torch


def mix_batch(
    x_BCDHW: torch.Tensor, targets_BC: torch.Tensor, *, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row mixed with another row of the batch, one share for the whole batch.

    The share of the row itself is drawn from Beta(a, a). MixUp adds the two rows by it; CutMix puts a box of the other
    row in, whose relative volume is 1 - share before the batch's rim cuts it, and then takes the share that is really
    left. With both on, each batch takes one of them with probability one half.

    Args:
        x_BCDHW: floating point, 4-D or 5-D.
        targets_BC: floating point; one-hot or soft.
        mixup, cutmix: the parameter a of the Beta distribution; 0 is off. With both off the batch is returned as it is.
        generator: one number is drawn from it, and decides everything; on the CPU.

    Raises:
        ValueError: a negative parameter, or whole numbers, which cannot hold a mixture.

    Source: Zhang et al. (2018), mixup; Yun et al. (2019), CutMix.
    """
    if mixup < 0 or cutmix < 0:
        raise ValueError(f"mixup and cutmix are parameters of a Beta distribution, 0 or more; got {mixup} and {cutmix}")
    if not (x_BCDHW.is_floating_point() and targets_BC.is_floating_point()):
        raise ValueError(
            f"mix_batch takes floating-point inputs and one-hot targets; got {x_BCDHW.dtype} and {targets_BC.dtype}"
        )
    if targets_BC.ndim != 2 or len(targets_BC) != len(x_BCDHW) or x_BCDHW.ndim not in (4, 5):
        raise ValueError(
            f"mix_batch takes (B, C, H, W) or (B, C, D, H, W) and targets (B, C); got {tuple(x_BCDHW.shape)} "
            f"and {tuple(targets_BC.shape)}"
        )
    if not (mixup or cutmix):
        return x_BCDHW, targets_BC
    rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    cuts = rng.random() < 0.5 if mixup and cutmix else bool(cutmix)
    share = float(rng.beta(cutmix, cutmix) if cuts else rng.beta(mixup, mixup))
    other_B = torch.from_numpy(rng.permutation(len(x_BCDHW))).to(x_BCDHW.device)
    if cuts:
        sizes = tuple(x_BCDHW.shape[2:])
        box = cut_box(sizes, share, tuple(int(rng.integers(size)) for size in sizes))
        share = 1 - float(np.prod([side.stop - side.start for side in box])) / float(np.prod(sizes))
        mixed_BCDHW = x_BCDHW.clone()
        place = (slice(None), slice(None), *box)
        mixed_BCDHW[place] = x_BCDHW[other_B][place]
    else:
        mixed_BCDHW = share * x_BCDHW + (1 - share) * x_BCDHW[other_B]
    other_targets_BC = targets_BC[other_B.to(targets_BC.device)]
    return mixed_BCDHW, share * targets_BC + (1 - share) * other_targets_BC


def cut_box(sizes: tuple[int, ...], share: float, centre: tuple[int, ...]) -> tuple[slice, ...]:
    """The box of CutMix: each side (1 - share)^(1/n) of the input's n sides longer than one, cut at the rim.

    >>> cut_box((10, 10), 0.75, (0, 5))
    (slice(0, 3, None), slice(3, 8, None))
    """
    ratio = (1 - share) ** (1 / max(1, sum(size > 1 for size in sizes)))
    box = []
    for size, middle in zip(sizes, centre):
        length = int(size * ratio) if size > 1 else 1
        box.append(slice(max(middle - length // 2, 0), min(middle + (length + 1) // 2, size)))
    return tuple(box)
