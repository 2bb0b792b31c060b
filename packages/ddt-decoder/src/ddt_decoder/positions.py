# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/positions.py
"""Fixed embeddings of positions: times, the order of tokens, patches on a grid. Cosines and sines of many frequencies.

Encoder and decoder need them equal: queries and tokens stand at the same points. Shape letters: D width; h, w patch
grid, S side of a table; n points.
"""

import math

import torch
from torch import Tensor


def sincos(positions: Tensor, width: int) -> Tensor:
    """Embed scalars [...] as [..., D]: cosines, then sines, with periods up to 10,000 (as timesteps in DiT).

    Example:
        >>> sincos(torch.tensor([0.0]), 4)
        tensor([[1., 1., 0., 0.]])
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=positions.device) / half)
    angles = positions[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def exact_sincos(positions: Tensor, width: int) -> Tensor:
    """Embed scalars [...] as [..., D]: sines, then cosines, SD3's and Selftok's order for positions; on the CPU.

    Computed in float64: an angle of 5000 in float32 is wrong by 3e-4.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width // 2))
    angles = positions.cpu().double()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def token_positions(count: int, device: torch.device) -> Tensor:
    """Compute the places of tokens 0..count-1 on the axis of timesteps: 1000 + 8 k, beyond any real one (Selftok).

    Example:
        >>> token_positions(3, torch.device("cpu")).tolist()
        [1000, 1008, 1016]
    """
    return 1000 + 8 * torch.arange(count, device=device)


def centred_grid(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Embed an h x w grid of patches, centred on its middle, as [h * w, channels]: half rows, half columns.

    Wavelengths run from 2 to 128 patches, so that neighbours differ and the largest usual grid is told apart.

    Example:
        >>> centred_grid(2, 3, 8, torch.device("cpu")).shape
        torch.Size([6, 8])
    """
    rows, columns = (torch.arange(size, device=device) - (size - 1) / 2 for size in (height, width))
    return at_points(torch.cartesian_prod(rows, columns), channels)


def at_points(points: Tensor, channels: int) -> Tensor:
    """Embed points [n, 2], rows and columns in patches from the middle, as [n, channels]; see `centred_grid`.

    Example:
        >>> grid = centred_grid(2, 2, 8, torch.device("cpu"))
        >>> torch.equal(at_points(torch.tensor([[-0.5, 0.5]]), 8)[0], grid[1])
        True
    """
    frequencies = math.pi * 64.0 ** -torch.linspace(0, 1, channels // 4, device=points.device)
    angles = points[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)


def spread_points(count: int, height: int, width: int) -> Tensor:
    """Spread points over a grid of h x w patches: [count, 2], rows and columns from its middle.

    They form a grid themselves, as near to the shape of the other as `count` allows, and follow one another in
    golden-section strides through it, so that any run of consecutive points covers the picture evenly.

    Example:
        >>> spread_points(4, 2, 2).tolist()
        [[-0.5, -0.5], [0.5, 0.5], [0.5, -0.5], [-0.5, 0.5]]
    """
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    rows = min(divisors, key=lambda n: (round(abs(math.log(n * n * width / (count * height))), 6), n))
    columns = count // rows
    step = next(n for n in range(round(0.618 * count), 2 * count) if math.gcd(n, count) == 1)
    cells = torch.arange(count, device="cpu") * step % count
    places = [(cells // columns + 0.5) / rows, (cells % columns + 0.5) / columns]
    return (torch.stack(places, dim=1) - 0.5) * torch.tensor([height, width])


def cropped_table(height: int, width: int, side: int, channels: int, span: int | None = None) -> Tensor:
    """Compute the middle h x w of the S x S table of MAE and SD3, as [h * w, channels] on the CPU.

    Half columns, half rows, each `exact_sincos` of a number from 0, which counts `span` over the S patches of a side;
    None counts patches. Only the part that is cut out is computed.

    Example:
        >>> middle = cropped_table(2, 2, 6, 8)
        >>> torch.equal(middle, cropped_table(6, 6, 6, 8).view(6, 6, 8)[2:4, 2:4].flatten(0, 1))
        True
    """
    places = (torch.arange(size, device="cpu") + (side - size) // 2 for size in (height, width))
    rows, columns = (exact_sincos(along.double() * (span or side) / side, channels // 2) for along in places)
    return torch.cat([columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=-1).flatten(0, 1)
