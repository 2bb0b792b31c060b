"""Pictures and text for models that read and draw: scenes with exact truth, folders of pictures, shards."""

from ddt_data.nouns import BACKGROUNDS, COLOURS, NOUNS, STYLES
from ddt_data.scenes import Scene, SceneConfig, SceneGenerator, SceneObject, relation, render
from ddt_data.sprites import load_sprites, sprite

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "NOUNS",
    "STYLES",
    "Scene",
    "SceneConfig",
    "SceneGenerator",
    "SceneObject",
    "load_sprites",
    "relation",
    "render",
    "sprite",
]
