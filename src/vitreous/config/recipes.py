"""The `recipes` part of a study."""

from typing import Annotated

from pydantic import Field

from vitreous.config.probe_recipes import Knn, LinearProbe, LogisticRegression, MlpProbe

FeatureRecipe = LinearProbe | MlpProbe | LogisticRegression | Knn

Recipe = Annotated[FeatureRecipe, Field(discriminator="kind")]
