"""What a decoder learns (acceptance checks 6, 7 and 10 of the method), on a problem that takes seconds.

Images are sums of waves that cover the whole picture. Token k holds the amplitudes of its waves; the higher the index,
the larger they are, so the tokens are nested from fine to coarse as those of a trained tokenizer.
"""

import math
from itertools import pairwise

import pytest
import torch

from ddt_decoder import DDTDecoder, DecoderConfig, FlowConfig, MMDiTConfig

NUM_TOKENS, WIDTH, SIDE = 4, 2, 16


def draw(count, seed):
    """Make images [N, 3, 16, 16] and their tokens [N, 4, 2]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, NUM_TOKENS, WIDTH, generator=generator)
    place = (torch.arange(SIDE) + 0.5) / SIDE
    waves = []
    for index in range(NUM_TOKENS * WIDTH):
        rows = (math.pi * (index % 4) * place).cos()
        columns = (math.pi * (index // 4 + 1) * place).cos()
        colour = torch.tensor([math.cos(index), math.cos(index + 2), math.cos(index + 4)])
        waves.append(colour[:, None, None] * rows[:, None] * columns[None])
    sizes = 0.1 * 1.4 ** torch.arange(NUM_TOKENS, dtype=torch.float32)
    amplitudes = (tokens * sizes[:, None]).flatten(1)
    return (amplitudes @ torch.stack(waves).flatten(1)).unflatten(1, (3, SIDE, SIDE)), tokens


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    network = MMDiTConfig(patch_size=8, width=32, depth=2, num_heads=2, token_width=WIDTH)
    flow = FlowConfig(full_noise_share=0.3, coarse_share=0.4, token_dropout=0.1)
    config = DecoderConfig(image_size=SIDE, codebook_size=2, schedule=(NUM_TOKENS,), network=network, flow=flow)
    decoder = DDTDecoder(config)
    images, tokens = draw(4096, seed=0)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=6e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, 300)
    for _ in range(300):
        chosen = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        decoder.loss(images[chosen], tokens[chosen]).backward()
        optimizer.step()
        schedule.step()
    return decoder.eval()


def psnr(images, others):
    return float(10 * (4 / (images - others).square().mean()).log10())


@pytest.mark.parametrize("num_steps", [1, 10])
def test_more_tokens_draw_a_better_image_and_coarse_ones_matter_most(decoder, num_steps):
    images, tokens = draw(32, seed=1)
    curve = [psnr(decoder.decode(tokens, num_steps, keep_tokens=n), images) for n in range(NUM_TOKENS + 1)]
    gains = [after - before for before, after in pairwise(curve)]
    assert all(gain > 1 for gain in gains[:2]) and min(gains) > -0.1, curve
    errors = [10 ** (-value / 10) for value in curve]
    drops = [before - after for before, after in pairwise(errors)]
    assert max(drops) == max(drops[:2]), curve
    assert curve[-1] > curve[0] + 3, curve


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.35), (0.35, 0.7), (0.7, 1.0)])
def test_tokens_lower_the_error_at_every_noise_level(decoder, low, high):
    images, tokens = draw(256, seed=2)
    torch.manual_seed(3)
    t = low + (high - low) * torch.rand(256)
    x_t = t.view(-1, 1, 1, 1) * torch.randn_like(images) + (1 - t.view(-1, 1, 1, 1)) * images
    with torch.inference_mode():
        errors = [
            (x_t - t.view(-1, 1, 1, 1) * decoder.velocity(x_t, t, tokens, keep) - images).square().mean()
            for keep in (None, 0)
        ]
    assert errors[0] < errors[1]


def test_swapping_tokens_makes_no_composite_of_patches(decoder):
    _, tokens = draw(32, seed=4)
    _, others = draw(32, seed=5)

    def patches(images):
        return images.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).permute(0, 2, 4, 1, 3, 5).flatten(3)

    one, other = (patches(decoder.decode(vectors, 1)) for vectors in (tokens, others))
    mixed = patches(decoder.swap(tokens, others, NUM_TOKENS - 1, NUM_TOKENS, num_steps=1))
    apart = (one - other).norm(dim=-1)
    nearest = torch.minimum((mixed - one).norm(dim=-1), (mixed - other).norm(dim=-1))
    # In a composite every patch is one of the two, so this share would be 1.
    assert (nearest < 0.1 * apart).float().mean() < 0.1
