"""Does a map depend on what the model learned? The same map of a model whose weights are of chance.

A map that looks the same then shows the input, not the model (Adebayo et al., Sanity Checks for Saliency Maps, 2018).

Axes: T, H, W cells of the token grid.
"""

import copy

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from vitreous.core.streams import torch_stream
from vitreous.diagnosis.explained_model import ExplainedModel

Map = npt.NDArray[np.float32]

_SSIM_SIGMA, _C1, _C2 = 1.5, 0.01**2, 0.03**2


class RandomisedModels:
    """The model with a head or an encoder of chance; one copy of the encoder is kept and drawn anew.

    Args:
        model: stays as it is.
    """

    def __init__(self, model: ExplainedModel) -> None:
        self.model = model
        self._encoder = copy.deepcopy(model.encoder)
        self._draw: int | None = None

    def with_random_head(self, draw: int) -> ExplainedModel:
        """The values of each tensor of the read-out in an order of chance: the scale stays, what was learned goes."""
        generator = torch_stream(draw, "randomised head")
        read_out = copy.deepcopy(self.model.read_out)
        with torch.no_grad():
            for parameter in read_out.parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view(parameter.shape))
        return self._around(self.model.encoder, read_out)

    def with_random_encoder(self, draw: int) -> ExplainedModel:
        """Every weight of the encoder by its family's own initialisation; valid until the next draw."""
        if self._draw != draw:
            device = next(self.model.encoder.parameters()).device
            encoder = self._encoder.cpu()
            backbone = encoder.backbone
            with torch.no_grad():
                backbone.init_weights(torch_stream(draw, "randomised encoder"))  # type: ignore[operator]
            self._encoder = encoder.to(device).eval().requires_grad_(False)
            self._draw = draw
        return self._around(self._encoder, self.model.read_out)

    def _around(self, encoder: torch.nn.Module, read_out: torch.nn.Module) -> ExplainedModel:
        model = ExplainedModel(encoder, read_out, self.model.classes, self.model.task)  # type: ignore[arg-type]
        return model.eval()


def rank_correlation(first_THW: Map, second_THW: Map) -> float:
    """Spearman's ρ over the cells; 0 where a map is constant, which agrees with nothing."""
    if np.ptp(first_THW) == 0 or np.ptp(second_THW) == 0:
        return 0.0
    return float(spearmanr(first_THW.reshape(-1), second_THW.reshape(-1)).statistic)


def ssim(first_THW: Map, second_THW: Map) -> float:
    """Mean structural similarity of two maps, each brought to [0, 1]; 1 where they are equal.

    Source: Wang et al. (2004), Gaussian window of deviation 1.5 cells; along axes of one cell there is no window.
    """
    return float(ssim_map(first_THW, second_THW).mean())


def ssim_map(first_THW: Map, second_THW: Map) -> npt.NDArray[np.float64]:
    """Structural similarity of each cell's surroundings."""
    x, y = (_unit(values) for values in (first_THW, second_THW))
    sigma = [0.0 if extent == 1 else _SSIM_SIGMA for extent in x.shape]

    def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        smoothed: npt.NDArray[np.float64] = gaussian_filter(values, sigma, mode="mirror", radius=5)
        return smoothed

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    similar: npt.NDArray[np.float64] = luminance * structure
    return similar


def _unit(values: Map) -> npt.NDArray[np.float64]:
    low, high = float(values.min()), float(values.max())
    if high == low:
        return np.zeros(values.shape)
    unit: npt.NDArray[np.float64] = (values.astype(np.float64) - low) / (high - low)
    return unit
