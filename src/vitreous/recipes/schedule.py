"""Learning rate over the steps of a training: linear warm-up, then a half cosine to zero."""

import math


def cosine_with_warmup(step: int, *, num_steps: int, num_warmup_steps: int) -> float:
    """The factor on the learning rate at `step`, in (0, 1].

    Rises by equal parts and reaches 1 at the last warm-up step; step `num_steps`, which is never taken,
    would have 0.

    Args:
        step: from 0 to `num_steps` − 1.
        num_warmup_steps: less than `num_steps`; 0 begins at the top.

    >>> [round(cosine_with_warmup(t, num_steps=6, num_warmup_steps=2), 3) for t in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    return 0.5 * (1.0 + math.cos(math.pi * (step - num_warmup_steps) / (num_steps - num_warmup_steps)))
