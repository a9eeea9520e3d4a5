"""The `recipes` part of a study."""

from typing import Annotated

from pydantic import Field

from vitreous.config.attentive_probe import AttentiveProbe
from vitreous.config.pixel_recipes import Finetune, FromScratch, Lora, Partial, Staged
from vitreous.config.probe_recipes import Knn, LinearProbe, LogisticRegression, MlpProbe

FeatureRecipe = LinearProbe | MlpProbe | LogisticRegression | Knn | AttentiveProbe
RecipeOnPixels = Finetune | Partial | Staged | Lora | FromScratch

Recipe = Annotated[FeatureRecipe | RecipeOnPixels, Field(discriminator="kind")]
