"""Fixed sinusoidal embeddings of positions: patches on a grid, queries in their order.

Shape letters: h, w patch grid; n positions.
"""

import math

import torch
from torch import Tensor


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


def spread_points(count: int, side: int) -> Tensor:
    """Spread points over a square of side x side patches: [count, 2], rows and columns from its middle.

    They form a grid, as near to a square as `count` allows, and follow one another in golden-section strides through
    it, so that any run of consecutive points covers the square evenly.

    Example:
        >>> spread_points(4, 2).tolist()
        [[-0.5, -0.5], [0.5, 0.5], [0.5, -0.5], [-0.5, 0.5]]
    """
    rows = max(n for n in range(1, math.isqrt(count) + 1) if count % n == 0)
    columns = count // rows
    step = next(n for n in range(round(0.618 * count), 2 * count) if math.gcd(n, count) == 1)
    cells = torch.arange(count, device="cpu") * step % count
    places = [(cells // columns + 0.5) / rows, (cells % columns + 0.5) / columns]
    return (torch.stack(places, dim=1) - 0.5) * side


def cropped_table(height: int, width: int, side: int, channels: int, device: torch.device) -> Tensor:
    """Cut an h x w grid out of the middle of the sin-cos table of MAE and SD3, as [h * w, channels].

    The table has `side` x `side` entries with base 10,000: half columns, half rows, each sines then cosines. Only the
    part that is cut out is computed, in float64 as in the public code of Selftok.

    Example:
        >>> middle = cropped_table(2, 2, 6, 8, torch.device("cpu"))
        >>> torch.equal(middle, cropped_table(6, 6, 6, 8, torch.device("cpu")).view(6, 6, 8)[2:4, 2:4].flatten(0, 1))
        True
    """
    frequencies = 10000.0 ** -(torch.arange(channels // 4, dtype=torch.float64, device="cpu") / (channels // 4))
    halves = []
    for size in (height, width):
        places = torch.arange(size, dtype=torch.float64, device="cpu") + (side - size) // 2
        angles = places[:, None] * frequencies
        halves.append(torch.cat([angles.sin(), angles.cos()], dim=-1))
    rows, columns = halves
    table = torch.cat([columns[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=-1)
    return table.flatten(0, 1).float().to(device)


def sincos(positions: Tensor, channels: int) -> Tensor:
    """Embed positions [n] as [n, channels]: cosines, then sines, with periods up to 10,000 (as timesteps in DiT).

    Example:
        >>> sincos(torch.arange(3), 4)[0].tolist()
        [1.0, 1.0, 0.0, 0.0]
    """
    steps = torch.arange(channels // 2, dtype=torch.float32, device=positions.device)
    frequencies = torch.exp(-math.log(10000) * steps / (channels // 2))
    angles = positions.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def token_positions(count: int, device: torch.device) -> Tensor:
    """Places of tokens 0..count-1 on the axis of timesteps: 1000 + 8k, beyond any real timestep (Selftok).

    Example:
        >>> token_positions(3, torch.device("cpu")).tolist()
        [1000, 1008, 1016]
    """
    return 1000 + 8 * torch.arange(count, device=device)
