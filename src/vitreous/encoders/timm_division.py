"""How models of timm divide into a stem, blocks and an end, each a list of submodules run one after another.

A class is known by where its `forward_features` is defined, so that a subclass with its own way through is not taken
for its parent. Models of other classes are one block.
"""

from dataclasses import dataclass

from torch import nn

# class that defines forward_features → submodules of the stem, of the blocks, of the end
_CHAINS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "ResNet": (("conv1", "bn1", "act1", "maxpool"), ("layer1", "layer2", "layer3", "layer4"), ()),
    "ResNetV2": (("stem",), ("stages",), ("norm",)),
    "RegNet": (("stem",), ("s1", "s2", "s3", "s4"), ("final_conv",)),
    "ConvNeXt": (("stem",), ("stages",), ("norm_pre",)),
    "EfficientNet": (("conv_stem", "bn1"), ("blocks",), ("conv_head", "bn2")),
    "MobileNetV3": (("conv_stem", "bn1"), ("blocks",), ()),
    "DenseNet": ((), ("features",), ()),
    "SwinTransformer": (("patch_embed",), ("layers",), ("norm",)),
    "SwinTransformerV2": (("patch_embed",), ("layers",), ("norm",)),
    "MlpMixer": (("stem",), ("blocks",), ("norm",)),
    "MaxxVit": (("stem",), ("stages",), ("norm",)),
    "DaVit": (("stem",), ("stages",), ("norm_pre",)),
    "ByobNet": (("stem",), ("stages",), ("final_conv",)),
    "MetaFormer": (("stem",), ("stages",), ()),
    "PyramidVisionTransformerV2": (("patch_embed",), ("stages",), ()),
}
# stages that are their children run one after another
_UNROLLED = frozenset(
    {"ConvNeXtStage", "SwinTransformerStage", "SwinTransformerV2Stage", "RegStage", "DaVitStage", "MaxxVitStage"}
)


@dataclass(frozen=True)
class Division:
    """Names of submodules in the order they run.

    Args:
        blocks: what each block runs; a downsampling belongs to the block that it precedes.
    """

    stem: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    end: tuple[str, ...]


def defining_class(model: nn.Module) -> str:
    """Name of the class whose `forward_features` the model runs."""
    name: str = type(model).forward_features.__qualname__  # type: ignore[attr-defined]
    return name.partition(".")[0]


def divide(model: nn.Module) -> Division | None:
    """The division of a chain of submodules; None where the class is none that is known."""
    found = _CHAINS.get(defining_class(model))
    if found is None:
        return None
    stem, parts, end = found
    if defining_class(model) == "DenseNet":
        return _divide_densenet(model)
    leaves = [leaf for part in parts for leaf in _leaves(model.get_submodule(part), part)]
    blocks: list[tuple[str, ...]] = []
    waiting: tuple[str, ...] = ()
    for leaf in leaves:
        if leaf.rpartition(".")[2] == "downsample":
            waiting = (*waiting, leaf)
        else:
            blocks.append((*waiting, leaf))
            waiting = ()
    if waiting:
        blocks.append(waiting)
    return Division(stem, tuple(blocks), end)


def _leaves(module: nn.Module, path: str) -> list[str]:
    if type(module) in (nn.Sequential, nn.ModuleList) or type(module).__name__ in _UNROLLED:
        return [leaf for name, child in module.named_children() for leaf in _leaves(child, f"{path}.{name}")]
    return [path]


def _divide_densenet(model: nn.Module) -> Division:
    """Each dense block with the transition after it; the layers before the first and after the last stand alone."""
    names = [name for name, _ in model.get_submodule("features").named_children()]
    first = next(index for index, name in enumerate(names) if name.startswith("denseblock"))
    last = max(index for index, name in enumerate(names) if name.startswith(("denseblock", "transition")))
    blocks: list[tuple[str, ...]] = []
    for name in names[first : last + 1]:
        path = f"features.{name}"
        if name.startswith("denseblock"):
            blocks.append((path,))
        else:
            blocks[-1] = (*blocks[-1], path)
    ends = [f"features.{name}" for name in names[last + 1 :]]
    return Division(tuple(f"features.{name}" for name in names[:first]), tuple(blocks), tuple(ends))
