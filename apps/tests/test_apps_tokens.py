"""What single tokens carry, on a codec of which it is known: each token is the grey of one patch."""

import math
from types import SimpleNamespace

import torch

from ddt_apps.evaluation.tokens import from_finest, locality, patch_changes, plain_patch_codes


class Network:
    def __call__(self, noise, t, tokens, visible=None):
        patches = torch.zeros(len(noise), 16)
        patches[:, : tokens.shape[1]] = tokens[..., 0]
        return patches.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)


def codec():
    """32 px, 16 ids of 11: id i makes patch k the grey i / 5 - 1."""
    flow, latents = SimpleNamespace(network_output="x0"), SimpleNamespace(channels=3, downscale=1)
    decoder = SimpleNamespace(
        network=Network(),
        config=SimpleNamespace(flow=flow, latents=latents),
        as_tokens=lambda ids: ids[..., None] / 5 - 1,
        codebook=torch.arange(11) / 5 - 1,
        precision="32",
        latent_space=SimpleNamespace(decode=lambda latents: latents),
    )
    return SimpleNamespace(
        decoder=decoder,
        image_size=32,
        num_tokens=16,
        tokenizer=SimpleNamespace(config=SimpleNamespace(multiple=8)),
        decode=lambda ids, num_steps: Network()(ids, None, decoder.as_tokens(ids)),
    )


def test_the_finest_end_draws_its_patches():
    drawn = from_finest(codec(), torch.full((2, 16), 10), count=5)
    assert torch.equal(drawn[0, 0, ::8, ::8].flatten(), torch.tensor([1.0] * 5 + [0.0] * 11))


def test_a_swap_of_a_token_that_is_a_patch_changes_that_patch_alone():
    ids = torch.randint(11, (8, 16))
    changes = patch_changes(codec(), ids)
    expected = ((ids - ids.roll(1, 0)) / 5).square().float().mean(0)
    assert torch.allclose(changes, torch.diag(expected), atol=1e-5)
    assert torch.allclose(locality(changes), torch.ones(16))
    assert torch.allclose(locality(torch.ones(16, 16)), torch.full((16,), 1 / 16))
    assert locality(torch.zeros(16, 16)).isnan().all()


def test_codes_of_white_patches_are_counted_where_there_are_enough():
    images, changes = torch.zeros(60, 3, 32, 32), torch.eye(16)
    images[:40, :, :8, :8] = 1.0  # patch 0 is white in 40 pictures, patch 5 in 20, patch 6 in 19
    images[:20, :, 8:16, 8:16] = 1.0
    images[:19, :, 8:16, 16:24] = 1.0
    ids = torch.zeros(60, 16, dtype=torch.long)
    ids[:3, 0], ids[40:, 0] = torch.tensor([4, 5, 6]), torch.arange(20) + 100
    ids[:19, 6] = torch.arange(19)
    assert plain_patch_codes(ids, images, changes) == (4 + 1) / 2
    assert math.isnan(plain_patch_codes(ids, images - 0.5, changes))
