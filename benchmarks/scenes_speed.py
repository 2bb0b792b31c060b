"""Scenes a second on one core, truth drawn and rendered: as `ddt_data` does it, and the obvious way with Pillow.

python benchmarks/scenes_speed.py
"""

import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from ddt_data import BACKGROUNDS, Scene, SceneConfig, SceneGenerator, render, sprite

COUNT = 10_000
REPEATS = 5


def render_with_pillow(scene: Scene, config: SceneConfig) -> np.ndarray:
    """Draw a scene with one Pillow composite for each object and no cache."""
    canvas = Image.new("RGBA", (config.image_size, config.image_size), BACKGROUNDS[scene.background])
    for thing in scene.objects:
        drawn = Image.fromarray(sprite(thing.noun, thing.style, thing.colour, thing.size))
        canvas.alpha_composite(drawn, (thing.x, thing.y))
    return np.asarray(canvas.convert("RGB"))


def scenes_per_second(draw: Callable, config: SceneConfig, count: int) -> tuple[float, float]:
    """Measure in process CPU time: the first pass, which fills the caches, and the best of all."""
    generator = SceneGenerator(config, seed=0)
    rates = []
    for _ in range(REPEATS):
        start = time.process_time()
        for index in range(count):
            draw(generator[index], config)
        rates.append(count / (time.process_time() - start))
    return rates[0], max(rates)


def main() -> None:
    for name, config in {"64 px, default": SceneConfig(), "32 px, tiny": SceneConfig.tiny()}.items():
        first, best = scenes_per_second(render, config, COUNT)
        _, pillow = scenes_per_second(render_with_pillow, config, COUNT // 10)
        print(f"{name}: {best:,.0f} scenes/s (first {COUNT:,}: {first:,.0f}), with Pillow {pillow:,.0f}")


if __name__ == "__main__":
    main()
