"""The embedded vocabulary: what the sprites show, in which styles, and the named colours.

The order of `NOUNS` and `STYLES` is the order of the sprites in the embedded sheets, so it is part of the file format.
"""

# fmt: off
NOUNS = (
    "apple", "banana", "lemon", "pineapple", "watermelon", "carrot", "mushroom", "hamburger", "doughnut", "cactus",
    "tree", "sunflower", "dog", "cat", "rabbit", "fox", "panda", "pig", "frog", "penguin",
    "fish", "octopus", "butterfly", "snail", "car", "crown", "airplane", "rocket", "sailboat", "house",
    "umbrella", "key", "guitar", "ball", "clock", "bell", "gift", "chair", "star", "heart",
)
# fmt: on

STYLES = ("twemoji", "noto", "fluent")

# Tints of objects, sRGB 0..255.
COLOURS = {
    "red": (222, 36, 36),
    "orange": (250, 140, 16),
    "yellow": (250, 214, 34),
    "green": (40, 168, 60),
    "blue": (40, 100, 232),
    "purple": (142, 56, 200),
    "pink": (250, 130, 190),
    "brown": (128, 78, 40),
    "gray": (138, 142, 148),
}

# Plain backgrounds, sRGB 0..255. Softer than the tints, so that an object stands out from them.
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (20, 20, 24),
    "gray": (176, 178, 184),
    "blue": (150, 196, 250),
    "green": (160, 226, 160),
    "yellow": (252, 238, 150),
    "pink": (252, 196, 220),
    "purple": (206, 184, 246),
}
