"""Every kind of `data` a study may have."""

from typing import Annotated

from pydantic import Field

from vitreous.config.clip_data import FramesData
from vitreous.config.data import CsvData, FolderData, NpzData, ParticipantsData

Data = Annotated[ParticipantsData | NpzData | CsvData | FolderData | FramesData, Field(discriminator="kind")]
