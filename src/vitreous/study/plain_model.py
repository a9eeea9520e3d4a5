"""A trained model put together as one plain network in float32: for export, and for looking inside."""

from vitreous.recipes.exported_model import ExportedModel, export_pixel_model, export_probe
from vitreous.recipes.lora import merge_adapters
from vitreous.study.adapt_pixels import read_pixel_model
from vitreous.study.data import open_cache, s3_options
from vitreous.study.encoders import OpenedEncoder, load_source
from vitreous.study.heads import read_tensors
from vitreous.study.model_folder import ModelFolder


def plain_model(model: ModelFolder, opened: OpenedEncoder) -> ExportedModel:
    """The whole network: adapters merged, standardiser and batch norms of a probe folded into its layers.

    Raises:
        UserError: nearest neighbours, which are no network.
    """
    if model.recipe is not None:
        trained = read_pixel_model(model.config, opened, model.recipe, int(model.facts["seed"]), model.path)
        if trained.adapters is not None:
            merge_adapters(trained)
        return export_pixel_model(trained)
    space = model.facts["feature_space"]
    grid = None if space["grid"] is None else (space["grid"][0], space["grid"][1], space["grid"][2])
    trainable = load_source(model.source, s3_options(model.config), open_cache(model.config), trainable=True)
    return export_probe(trainable, read_tensors(model.path), pooling=space["pooling"], grid=grid)
