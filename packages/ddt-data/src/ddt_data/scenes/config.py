"""What scenes may hold, and how their things may lie."""

from dataclasses import dataclass
from typing import Self

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

    image_size: int = 64  # side of the picture, pixels
    nouns: tuple[str, ...] = NOUNS
    styles: tuple[str, ...] = STYLES  # one is drawn for each scene
    colours: tuple[str, ...] = tuple(COLOURS)  # tints of objects
    backgrounds: tuple[str, ...] = ("white", "black", "blue", "green", "pink")
    max_objects: int = 4  # 1..8; above 4, or with overlap, things are scattered instead of laid out on a grid
    object_size: tuple[float, float] = (0.31, 0.38)  # share of the side; at most 0.5 where there are several objects
    natural_share: float = 0.4  # probability that an object keeps its natural colours
    layout_shares: tuple[float, float, float, float] = (0.3, 0.35, 0.2, 0.15)  # relative, in the order of LAYOUTS
    style_words: float = 0.3  # probability that a caption names the style
    background_words: float = 0.3  # probability that a caption names the background
    size_words: float = 0.0  # probability that a caption says which things are large and small
    overlap: float = 0.0  # largest share of a thing that another may cover, 0..0.5

    def __post_init__(self) -> None:
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
        if not 1 <= self.max_objects <= 8:
            raise ValueError(f"max_objects ({self.max_objects}) must be 1 to 8")
        if not 0 <= self.overlap <= 0.5:
            raise ValueError(f"overlap ({self.overlap}) is a share, 0 to 0.5")
        if self.max_objects * high**2 > 2 and self.scattered:
            raise ValueError(f"object_size up to {high} leaves no room for max_objects ({self.max_objects}); lower one")
        if self.image_size * min(low, 0.5) < 4:
            raise ValueError(f"image_size ({self.image_size}) leaves objects of under 4 pixels; use a larger one")
        for field in ("natural_share", "style_words", "background_words", "size_words"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} ({getattr(self, field)}) is a probability, 0 to 1")
        if len(self.layout_shares) != len(LAYOUTS) or min(self.layout_shares) < 0 or not any(self.layout_weights):
            raise ValueError(
                f"layout_shares {self.layout_shares} must give {len(LAYOUTS)} shares of at least 0, one above 0 "
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
