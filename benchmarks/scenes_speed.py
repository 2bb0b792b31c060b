"""Scenes a second on one core, truth drawn and rendered: as `ddt_data` does it, and the obvious way with Pillow.

python benchmarks/scenes_speed.py [rounds=5] [count=2000]

Every round draws the next scenes of a stream both ways. Printed are the CPU time of Pillow over ours, scenes a second
of CPU time, and how many of the first 10,000, which fill the caches of sprites. Half a minute.
"""

import statistics
from collections.abc import Callable

import numpy as np
from pairs import cpu_seconds, settings, take_turns
from PIL import Image

from ddt_data import BACKGROUNDS, Scene, SceneConfig, SceneGenerator, render, sprite

FIRST = 10_000


def render_with_pillow(scene: Scene, config: SceneConfig) -> np.ndarray:
    """Draw a scene with one Pillow composite for each object and no cache."""
    canvas = Image.new("RGBA", (config.image_size, config.image_size), BACKGROUNDS[scene.background])
    for thing in scene.objects:
        drawn = Image.fromarray(sprite(thing.noun, thing.style, thing.colour, thing.size))
        canvas.alpha_composite(drawn, (thing.x, thing.y))
    return np.asarray(canvas.convert("RGB"))


def drawing(draw: Callable, config: SceneConfig, first: int, count: int) -> Callable[[], float]:
    """Make what draws the next scenes from `first` on, and tells the CPU seconds."""
    generator, following = SceneGenerator(config, seed=0), iter(range(first, 10**9))

    def way() -> float:
        begin = cpu_seconds()
        for _ in range(count):
            draw(generator[next(following)], config)
        return cpu_seconds() - begin

    return way


def main() -> None:
    options, _ = settings(rounds=5, count=2000)
    rounds, count = options.values()
    for name, config in {"64 px, default": SceneConfig(), "32 px, tiny": SceneConfig.tiny()}.items():
        first = FIRST / drawing(render, config, 0, FIRST)()
        ways = {
            "ddt-data": drawing(render, config, FIRST, count),
            "Pillow": drawing(render_with_pillow, config, FIRST, count),
        }
        found = take_turns(f"{name}, {count:,} scenes", ways, rounds)
        rates = (f"{way} {count / statistics.median(seconds):,.0f}" for way, seconds in found.items())
        print(f"  scenes a second: {', '.join(rates)}; of our first {FIRST:,}: {first:,.0f}")


if __name__ == "__main__":
    main()
