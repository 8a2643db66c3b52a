"""What the sections of a configuration share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the file: every key is known, and none is silently dropped."""

    model_config = ConfigDict(extra="forbid")
