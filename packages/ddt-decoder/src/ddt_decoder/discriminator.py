"""PatchDiscriminator: real or drawn, judged patch by patch, and the hinge losses of the two players.

Shape letters: B batch; H, W pixels.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """A stack of strided convolutions that scores overlapping patches (PatchGAN, arXiv:1611.07004).

    Every layer is spectrally normalised (arXiv:1802.05957). That bounds the gradient that reaches the renderer without
    a second backward pass, which a gradient penalty (R1) would cost at each step, and without batch statistics.

    Args:
        width: Channels of the first layer; each further one has twice as many, up to 8 times.
        depth: Layers that halve the resolution; images must measure at least 2^depth pixels a side.

    Example:
        >>> import torch
        >>> PatchDiscriminator(width=8, depth=2)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, width: int = 64, depth: int = 3):
        super().__init__()
        widths = [3, *(width * min(2**i, 8) for i in range(depth))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))

    def forward(self, images: Tensor) -> Tensor:
        """Score images [B, 3, H, W] in [-1, 1]: [B, 1, h, w], above zero where they look real."""
        return self.layers(images)


def discriminator_loss(real: Tensor, drawn: Tensor) -> Tensor:
    """Compute the hinge loss of the discriminator from its scores of real and of drawn images: a scalar."""
    return (F.relu(1 - real).mean() + F.relu(1 + drawn).mean()) / 2


def adversarial_loss(drawn: Tensor) -> Tensor:
    """Compute the loss of the renderer from the discriminator's scores of drawn images: a scalar."""
    return -drawn.mean()
