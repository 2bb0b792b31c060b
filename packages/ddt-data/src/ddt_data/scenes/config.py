"""What scenes may hold, and how their things may lie."""

from dataclasses import dataclass
from typing import Annotated, Self

from annotated_types import Interval

from ddt_data.limits import NonNegativeFloat, Pixels, PositiveFloat, Share, check_settings
from ddt_data.scenes.nouns import BACKGROUNDS, COLOURS, NOUNS, STYLES

LAYOUTS = ("single", "two", "count", "mixed")

# Nouns that can be told apart at 16 px.
# fmt: off
TINY_NOUNS = (
    "apple", "mushroom", "tree", "cactus", "cat", "penguin", "fish", "car", "house", "umbrella", "star", "heart",
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What scenes may hold.

    Raises:
        ValueError: If a name is unknown or a number is out of its range.

    Example:
        >>> SceneConfig(image_size=128, max_objects=2).max_objects
        2
    """

    image_size: Pixels = 64  # side of the picture, pixels
    nouns: tuple[str, ...] = NOUNS
    styles: tuple[str, ...] = STYLES  # one is drawn for each scene
    colours: tuple[str, ...] = tuple(COLOURS)  # tints of objects
    backgrounds: tuple[str, ...] = ("white", "black", "blue", "green", "pink")
    # Above 4, or with overlap, things are scattered instead of laid out on a grid.
    max_objects: Annotated[int, Interval(ge=1, le=8)] = 4
    # Share of the side; at most 0.5 where there are several objects.
    object_size: tuple[PositiveFloat, PositiveFloat] = (0.31, 0.38)
    natural_share: Share = 0.4  # probability that an object keeps its natural colours
    layout_shares: tuple[NonNegativeFloat, ...] = (0.3, 0.35, 0.2, 0.15)  # relative, in the order of LAYOUTS
    style_words: Share = 0.3  # probability that a caption names the style
    background_words: Share = 0.3  # probability that a caption names the background
    size_words: Share = 0.0  # probability that a caption says which things are large and small
    overlap: Annotated[float, Interval(ge=0, le=0.5)] = 0.0  # largest share of a thing that another may cover

    def __post_init__(self) -> None:
        check_settings(self)
        known = {"nouns": NOUNS, "styles": STYLES, "colours": COLOURS, "backgrounds": BACKGROUNDS}
        for field, names in known.items():
            chosen = getattr(self, field)
            unknown = [name for name in chosen if name not in names]
            if unknown or not chosen:
                found = f"holds {', '.join(map(repr, unknown))}" if unknown else "is empty"
                raise ValueError(f"{field} {found}; choose from: {', '.join(names)}")
        low, high = self.object_size
        if not 0 < low <= high <= 1:
            raise ValueError(f"object_size ({low}, {high}) must be two shares of the side, 0 < low <= high <= 1")
        if self.max_objects * high**2 > 2 and self.scattered:
            raise ValueError(f"object_size up to {high} leaves no room for max_objects ({self.max_objects}); lower one")
        if self.image_size * min(low, 0.5) < 4:
            raise ValueError(f"image_size ({self.image_size}) leaves objects of under 4 pixels; use a larger one")
        if len(self.layout_shares) != len(LAYOUTS) or not any(self.layout_weights):
            raise ValueError(
                f"layout_shares {self.layout_shares} must give {len(LAYOUTS)} shares, one above 0 "
                f"that max_objects ({self.max_objects}) and {len(self.nouns)} nouns allow: {', '.join(LAYOUTS)}"
            )

    @property
    def scattered(self) -> bool:
        """Whether several things lie anywhere, instead of side by side or in quarters."""
        return self.max_objects > 4 or self.overlap > 0

    @property
    def layout_weights(self) -> tuple[float, ...]:
        """`layout_shares` with 0 for layouts that need more objects or nouns than there are."""
        room = min(self.max_objects, len(self.nouns))
        possible = (True, room >= 2, self.max_objects >= 2, room >= 3)
        return tuple(share * fits for share, fits in zip(self.layout_shares, possible, strict=True))

    @classmethod
    def tiny(cls) -> Self:
        """Return the config of 32 px scenes of one or two large objects in strong colours: the quickest to learn.

        Example:
            >>> SceneConfig.tiny().image_size
            32
        """
        return cls(
            image_size=32,
            nouns=TINY_NOUNS,
            styles=("twemoji", "fluent"),
            colours=("red", "yellow", "green", "blue", "purple"),
            backgrounds=("white", "black", "blue", "green", "yellow", "pink"),
            max_objects=2,
            object_size=(0.55, 0.7),
            natural_share=0.3,
            layout_shares=(0.7, 0.3, 0.0, 0.0),
            background_words=0.7,
        )

    @classmethod
    def hard(cls) -> Self:
        """Return the config of 128 px scenes of up to eight things of all sizes that overlap.

        Example:
            >>> SceneConfig.hard().max_objects
            8
        """
        return cls(
            image_size=128,
            max_objects=8,
            object_size=(0.12, 0.36),
            layout_shares=(0.1, 0.3, 0.3, 0.3),
            size_words=0.4,
            overlap=0.15,
        )
