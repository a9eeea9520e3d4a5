"""Changes of a volume's values: contrast, brightness and noise.

Axes: C channel, D slice, H row, W column. Sums are NumPy's, whose result does not depend on the number of threads.
"""

import numpy as np
import torch


def mean_of(x_CDHW: torch.Tensor) -> float:
    """Mean over all values, in float64."""
    return float(x_CDHW.numpy().mean(dtype=np.float64))


def deviation_of(x_CDHW: torch.Tensor) -> float:
    """Standard deviation (of the population) over all values, in float64."""
    return float(x_CDHW.numpy().std(dtype=np.float64))


def change_intensity(volume_CDHW: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Contrast about the mean times 1±strength, then a shift of ±strength standard deviations, both uniform."""
    factor, shift = rng.uniform(1 - strength, 1 + strength), rng.uniform(-strength, strength)
    mean = mean_of(volume_CDHW)
    return volume_CDHW * factor + (mean * (1 - factor) + shift * deviation_of(volume_CDHW))


def add_noise(volume_CDHW: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """White Gaussian noise of `strength` standard deviations of the volume, the same in every channel, since the
    channels of a volume repeat one grey value."""
    noise_1DHW = torch.from_numpy(rng.standard_normal((1, *volume_CDHW.shape[1:]), dtype=np.float32))
    return volume_CDHW + noise_1DHW * (strength * deviation_of(volume_CDHW))
