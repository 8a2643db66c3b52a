"""Which raw id each index of a model stands for."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.ids import IdMap


@dataclass(frozen=True)
class Catalogue:
    """The raw ids a model was trained on; index ``i`` of the model is ``values[i]`` of the map.

    Attributes:
        items: the n_items raw item ids.
        users: the n_users raw user ids, or None where users have no names.
    """

    items: IdMap
    users: IdMap | None = None
