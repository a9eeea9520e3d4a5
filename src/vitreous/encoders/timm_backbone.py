"""Any image model of timm as a backbone: stem, blocks and end run exactly what its `forward_features` runs.

Axes: B image, C channel, D slice (one), H row, W column, N token, E width; h, w of a map.
Source: Wightman, PyTorch Image Models.
"""

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.encoders.timm_division import Division, defining_class, divide
from vitreous.encoders.vit3d import block_depth

declare_torchvision_schemas()

HOLDER = "model."
Size2 = tuple[int, int]
Size3 = tuple[int, int, int]

_SMALLEST = 32  # pixels: what remains of fewer after five halvings is less than one position


class TimmBackbone(nn.Module):
    """A model of a class with no known division: one block.

    Pooling and classifier are taken out, so that every weight that stays has a part in the tokens. Prefix tokens
    are kept where the first of them is a class token, and dropped after the last block where there is none.

    Args:
        model: of timm, on any device.
        make: builds such a model, by timm's own initialisation; called for random weights.
        img_size: pixels (H, W) of the input that it is built for.

    Raises:
        ValueError: the model gives neither a map nor tokens on a grid.
    """

    def __init__(self, model: nn.Module, make: Callable[[], nn.Module], img_size: Size2) -> None:
        super().__init__()
        self._make = make
        self.model = model
        self._shapes: dict[Size2, tuple[int, ...]] = {}
        self.img_size = img_size
        self._heads = _unused_modules(self.model, img_size)
        _take_out(self.model, self._heads)
        shape = self._shape_of_output(img_size)
        self.width = int(getattr(self.model, "num_features", shape[-1]))
        self._is_map = len(shape) == 4
        self._channels_last = self._is_map and getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        if len(shape) not in (3, 4) or shape[-1 if len(shape) == 3 or self._channels_last else 1] != self.width:
            raise ValueError(f"its features have the shape {shape}, which is neither a map nor tokens of {self.width}")
        self._num_extra_tokens = 0 if self._is_map else int(getattr(self.model, "num_prefix_tokens", 0))
        has_class_token = getattr(self.model, "cls_token", None) is not None
        self.num_prefix_tokens = self._num_extra_tokens if has_class_token else 0
        self._reduced = False

    @property
    def num_blocks(self) -> int:
        """One: where this class divides is not known."""
        return 1

    def init_weights(self, generator: torch.Generator) -> None:
        """timm's own initialisation, drawn from a random state that `generator` alone decides."""
        seed = int(torch.randint(0, 2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            self.model = self._make()
        _take_out(self.model, self._heads)

    def truncate(self, layer: int) -> None:
        """Leave out the blocks after block number `layer`, counted from 1.

        Raises:
            ValueError: how this class divides is not known, or the end does not fit what the block gives.
        """
        raise ValueError("how this model divides into blocks is not known")

    def set_precision(self, dtype: torch.dtype) -> None:
        """In bfloat16 plain linear layers and convolutions keep their weights in it; the rest is left to autocast."""
        self._reduced = dtype == torch.bfloat16
        if self._reduced:
            for module in self.modules():
                if type(module) in (nn.Linear, nn.Conv2d):
                    module.to(dtype)

    def set_input_size(self, size: Size3) -> str | None:
        """Bring learned positions and windows to an input of `size`; weights must be loaded.

        Returns:
            What was interpolated; None where nothing was.

        Raises:
            ValueError: the patch does not divide the size, or the model cannot take it.
        """
        depth, rows, columns = size
        if depth != 1:
            raise ValueError(f"images have one slice; got an input of {size}")
        self._check_patch((rows, columns))
        if (rows, columns) == self.img_size or not hasattr(self.model, "set_input_size"):
            return None  # `grid_of` refuses what does not fit
        before = {name: tensor.shape for name, tensor in self.model.named_parameters()}
        grid_before = self._patch_grid()
        try:
            with warnings.catch_warnings():  # of torch, on how timm indexes while it interpolates windows' biases
                warnings.filterwarnings("ignore", category=UserWarning, module=r"timm\.layers\.interpolate")
                self.model.set_input_size(img_size=(rows, columns))  # type: ignore[operator]
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ValueError(f"the model takes no images of {rows}×{columns} pixels: {error}") from error
        self.img_size = (rows, columns)
        self._shapes.clear()
        changed = [name for name, tensor in self.model.named_parameters() if tensor.shape != before[name]]
        if not changed:
            return None
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        tokens = f" from {_times(grid_before)} to {_times(self._patch_grid())} tokens" if grid_before else ""
        return f"{changed[0]}{more} interpolated{tokens} for images of {rows}×{columns} pixels"

    def grid_of(self, size: Size3) -> Size3:
        """One slice, and rows and columns of tokens; the size must be the one the model is set to, or any for a CNN."""
        depth, rows, columns = size
        if depth != 1:
            raise ValueError(f"images have one slice; got an input of {size}")
        if self._is_map and min(rows, columns) < _SMALLEST:
            raise ValueError(f"images need {_SMALLEST} pixels a side at least; got {rows}×{columns}")
        self._check_patch((rows, columns))
        try:
            shape = self._shape_of_output((rows, columns))
        except (ValueError, RuntimeError, AssertionError) as error:
            fits = f"the model takes images of {_times(self.img_size)} pixels"
            raise ValueError(f"{fits}; got {rows}×{columns} ({error})") from error
        if self._is_map:
            h, w = shape[1:3] if self._channels_last else shape[2:]
            return 1, h, w
        num_tokens = shape[1] - self._num_extra_tokens
        grid = self._patch_grid() or _grid_like(num_tokens, (rows, columns))
        if math.prod(grid) != num_tokens:
            raise ValueError(f"{num_tokens} tokens of a {rows}×{columns} image do not lie on a grid")
        return 1, *grid

    def embed(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """What enters the first block."""
        with self._precise(x_BCDHW):
            return self._stem(x_BCDHW[:, :, 0])

    def run_blocks(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Blocks from `start` to before `stop`."""
        with self._precise(hidden):
            return self._run(hidden, start, stop)

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """The end of the model, as tokens."""
        with self._precise(hidden):
            features = self._end(hidden)
        if self._is_map:
            return features.flatten(1, 2) if self._channels_last else features.flatten(2).transpose(1, 2)
        return features if self.num_prefix_tokens else features[:, self._num_extra_tokens :]

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return self.finish(self.run_blocks(self.embed(x_BCDHW), 0, self.num_blocks))

    def depth_of(self, name: str) -> int:
        """0 stem, i + 1 block i, num_blocks + 1 the end."""
        return self._depth(name.removeprefix(HOLDER))

    def _depth(self, name: str) -> int:
        return 1

    def _stem(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return x_BCHW

    def _run(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        features: torch.Tensor = self.model.forward_features(hidden) if start < stop else hidden  # type: ignore[operator]
        return features

    def _end(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def _precise(self, x: torch.Tensor) -> AbstractContextManager[Any]:
        if not self._reduced:
            return nullcontext()
        if x.device.type == "meta":  # autocast knows no such device; shapes and counts are those of float32
            self.float()
            return nullcontext()
        return torch.autocast(x.device.type, torch.bfloat16)

    def _patch_grid(self) -> Size2 | None:
        grid = getattr(getattr(self.model, "patch_embed", None), "grid_size", None)
        return None if self._is_map or grid is None else (grid[0], grid[1])

    def _check_patch(self, size: Size2) -> None:
        projection = getattr(getattr(self.model, "patch_embed", None), "proj", None)
        if not isinstance(projection, nn.Conv2d) or projection.stride != projection.kernel_size:
            return  # no patches, or patches that overlap and are padded
        patch = projection.kernel_size
        if all(extent % step == 0 for extent, step in zip(size, patch)):
            return
        below = tuple(max(extent // step, 1) * step for extent, step in zip(size, patch))
        above = tuple(-(-extent // step) * step for extent, step in zip(size, patch))
        raise ValueError(
            f"the patch of {_times(patch)} pixels does not divide {_times(size)}; the nearest sizes that work are "
            f"{_times(below)} and {_times(above)}"
        )

    def _shape_of_output(self, size: Size2) -> tuple[int, ...]:
        if size in self._shapes:
            return self._shapes[size]
        shadow = _shadow(self.model)
        with torch.no_grad():
            features = shadow.forward_features(_blank(size))  # type: ignore[operator]
        if not isinstance(features, torch.Tensor):
            raise ValueError(f"its features are a {type(features).__name__}, not one map or one list of tokens")
        self._shapes[size] = tuple(features.shape)
        return self._shapes[size]


class TimmChain(TimmBackbone):
    """A model whose submodules run one after another."""

    def __init__(self, model: nn.Module, make: Callable[[], nn.Module], img_size: Size2) -> None:
        super().__init__(model, make, img_size)
        division = divide(self.model)
        if division is None:
            raise ValueError(f"{type(self.model).__name__} has no known division")
        self._division: Division = division

    def truncate(self, layer: int) -> None:
        """Leave out what runs after block number `layer`, counted from 1, up to the end of the model.

        Raises:
            ValueError: the end does not fit what this block gives.
        """
        left_out = tuple(path for paths in self._division.blocks[layer:] for path in paths)
        make = self._make

        def make_shorter() -> nn.Module:
            shorter = make()
            _take_out(shorter, left_out)
            return shorter

        _take_out(self.model, left_out)
        self._make = make_shorter
        self._division = replace(self._division, blocks=self._division.blocks[:layer])
        self._shapes.clear()
        try:
            shape = self._shape_of_output(self.img_size)
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ValueError(f"the model's end does not fit what block {layer} gives ({error})") from error
        self.width = shape[-1] if not self._is_map or self._channels_last else shape[1]

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages together."""
        return len(self._division.blocks)

    def _depth(self, name: str) -> int:
        for index, paths in enumerate(self._division.blocks):
            if any(name == path or name.startswith(f"{path}.") for path in paths):
                return index + 1
        is_end = any(name == path or name.startswith(f"{path}.") for path in self._division.end)
        return self.num_blocks + 1 if is_end else 0

    def _stem(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self._through(x_BCHW, self._division.stem)

    def _run(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        for paths in self._division.blocks[start:stop]:
            hidden = self._through(hidden, paths)
        return hidden

    def _end(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._through(hidden, self._division.end)

    def _through(self, x: torch.Tensor, paths: tuple[str, ...]) -> torch.Tensor:
        for path in paths:
            x = self.model.get_submodule(path)(x)
        return x


class TimmTransformer(TimmBackbone):
    """timm's VisionTransformer and its kind: patches with positions, blocks, a norm."""

    @property
    def num_blocks(self) -> int:
        """Transformer blocks."""
        return len(self.model.blocks)  # type: ignore[arg-type]

    def truncate(self, layer: int) -> None:
        """Leave out the blocks after block number `layer`, counted from 1; the norm stays."""
        make = self._make

        def make_shorter() -> nn.Module:
            model: Any = make()
            model.blocks = model.blocks[:layer]
            whole: nn.Module = model
            return whole

        model: Any = self.model
        model.blocks = model.blocks[:layer]
        self._make = make_shorter
        self._shapes.clear()

    def _depth(self, name: str) -> int:
        return block_depth(name, self.num_blocks, end=("norm",))

    def _stem(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        model: Any = self.model
        x_BNE: torch.Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x_BCHW))))
        return x_BNE

    def _run(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        model: Any = self.model
        for block in model.blocks[start:stop]:
            hidden = block(hidden)
        return hidden

    def _end(self, hidden: torch.Tensor) -> torch.Tensor:
        model: Any = self.model
        normed_BNE: torch.Tensor = model.norm(hidden)
        return normed_BNE


class TimmEva(TimmTransformer):
    """timm's Eva (EVA-02, DINOv3, Perception Encoder): rotary positions, which depend on the grid alone."""

    def _stem(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        model: Any = self.model
        x_BNE: torch.Tensor = model.norm_pre(model._pos_embed(model.patch_embed(x_BCHW))[0])
        return x_BNE

    def _run(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        model: Any = self.model
        rope = None
        if model.rope is not None:
            rope = model.rope.get_embed(shape=self._patch_grid())
        for block in model.blocks[start:stop]:
            hidden = block(hidden, rope=rope)
        return hidden


class TimmBeit(TimmTransformer):
    """timm's Beit: a learned bias for each distance, block by block."""

    def _stem(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        model: Any = self.model
        x_BNE: torch.Tensor = model.patch_embed(x_BCHW)
        x_BNE = torch.cat([model.cls_token.expand(len(x_BNE), -1, -1), x_BNE], dim=1)
        if model.pos_embed is not None:
            x_BNE = x_BNE + model.pos_embed
        dropped_BNE: torch.Tensor = model.pos_drop(x_BNE)
        return dropped_BNE


def wrap_timm(make: Callable[[], nn.Module], img_size: Size2) -> TimmBackbone:
    """The backbone that knows how such a model divides."""
    model: Any = make()
    match defining_class(model):
        case "VisionTransformer":
            return TimmTransformer(model, make, img_size)
        case "Eva" if not getattr(model, "rope_mixed", False):
            return TimmEva(model, make, img_size)
        case "Beit" if model.rel_pos_bias is None:
            return TimmBeit(model, make, img_size)
    kind = TimmBackbone if divide(model) is None else TimmChain
    return kind(model, make, img_size)


def _unused_modules(model: nn.Module, size: Size2) -> tuple[str, ...]:
    """Topmost submodules none of whose weights has a part in the features: found by a backward pass without data."""
    shadow = _shadow(model).requires_grad_(True)
    with torch.inference_mode(False), torch.enable_grad():
        features = shadow.forward_features(_blank(size))  # type: ignore[operator]
        if isinstance(features, torch.Tensor):
            features.sum().backward()  # type: ignore[no-untyped-call]
    found: list[str] = []
    for name, module in shadow.named_modules():
        weights = list(module.parameters())
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and weights and not is_inside and all(weight.grad is None for weight in weights):
            found.append(name)
    return tuple(found)


def _take_out(model: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())


def _shadow(model: nn.Module) -> nn.Module:
    """The model without data: shapes and the flow of gradients are those of the model."""
    return copy.deepcopy(model).to("meta", torch.float32).eval()


def _blank(size: Size2) -> torch.Tensor:
    return torch.zeros(1, 3, *size, device="meta")


def _grid_like(num_tokens: int, size: Size2) -> Size2:
    """Rows and columns in the proportion of the image."""
    rows = round(math.sqrt(num_tokens * size[0] / size[1]))
    return rows, num_tokens // max(rows, 1)


def _times(size: tuple[int, ...] | None) -> str:
    return "×".join(map(str, size or ()))
