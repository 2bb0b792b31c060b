"""Fixed embeddings of times, token positions and patch grids: cosines and sines of many frequencies.

Shape letters: D width; h, w patch grid, S side of a stored table.
"""

import math

import torch
from torch import Tensor

SD3_UNIT = 64  # patches of SD3's training grid (1024 px); its table counts positions in side / 64 of a patch


def sincos(positions: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Embed scalars of shape [...] as [..., width] cosines and sines of geometrically spaced frequencies.

    >>> sincos(torch.tensor([0.0]), 4)
    tensor([[1., 1., 0., 0.]])
    """
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=positions.device) / half)
    angles = positions[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def exact_sincos(positions: Tensor, width: int) -> Tensor:
    """Embed scalars [...] as [..., width] sines, then cosines: SD3's and Selftok's order for positions.

    Computed in float64 on the CPU: an angle of 5000 in float32 is wrong by 3e-4.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width // 2))
    angles = positions.cpu().double()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def sincos_grid(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Embed an h x w grid of patches, centred on its middle, as [h * w, channels]: half rows, half columns.

    Wavelengths run from 2 to 128 patches, so that neighbours differ and the largest usual grid is told apart.
    """
    rows, columns = (torch.arange(size, device=device) - (size - 1) / 2 for size in (height, width))
    return at_points(torch.cartesian_prod(rows, columns), channels)


def at_points(points: Tensor, channels: int) -> Tensor:
    """Embed points [n, 2], rows and columns in patches from the middle, as [n, channels]; see `sincos_grid`."""
    frequencies = math.pi * 64.0 ** -torch.linspace(0, 1, channels // 4, device=points.device)
    angles = points[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)


def spread_points(count: int, side: int) -> Tensor:
    """Spread points over a square of side x side patches: [count, 2], rows and columns from its middle.

    They form a grid, as near to a square as `count` allows, and follow one another in golden-section strides through
    it, so that any run of consecutive points covers the square evenly. ddt-tokenizer starts its queries at the same
    places.

    >>> spread_points(4, 2).tolist()
    [[-0.5, -0.5], [0.5, 0.5], [0.5, -0.5], [-0.5, 0.5]]
    """
    rows = max(n for n in range(1, math.isqrt(count) + 1) if count % n == 0)
    columns = count // rows
    step = next(n for n in range(round(0.618 * count), 2 * count) if math.gcd(n, count) == 1)
    cells = torch.arange(count, device="cpu") * step % count
    places = [(cells // columns + 0.5) / rows, (cells % columns + 0.5) / columns]
    return (torch.stack(places, dim=1) - 0.5) * side


def sincos_table(side: int, channels: int) -> Tensor:
    """Fill SD3's table of patch positions, [S * S, channels]: half columns, half rows (arXiv:2403.03206).

    A zero table, as a from-scratch build of the public Selftok code has, would leave the network blind to place.
    """
    along = exact_sincos(torch.arange(side, dtype=torch.float64, device="cpu") * SD3_UNIT / side, channels // 2)
    rows, columns = along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


def centre_crop(table: Tensor, height: int, width: int) -> Tensor:
    """Take the middle h x w of a table [S * S, D]: [h * w, D].

    Raises:
        ValueError: If the table is smaller than the grid.
    """
    side = math.isqrt(len(table))
    if max(height, width) > side:
        raise ValueError(f"a grid of {height} x {width} patches exceeds table_side ({side}); use smaller images")
    top, left = (side - height) // 2, (side - width) // 2
    return table.view(side, side, -1)[top : top + height, left : left + width].flatten(0, 1)
