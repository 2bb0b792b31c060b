"""The judge: a small detector that reads a scene back from its picture.

Shape letters: B pictures, N nouns, C colours; h, w cells of 4 pixels of the canvas.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ddt_data.scenes.nouns import COLOURS, NOUNS

# Embedded judges and their hashes; "b" learned from another seed and one more style of drawings.
JUDGES = {"a": "b43cdfa360b75c33", "b": "91b4705b9239d172"}
STRIDE = 4  # canvas pixels a cell
CANVAS = 64  # side in pixels that a picture is brought to; sprites of 12 to 48 px are read there
THRESHOLD = 0.35  # least confidence of a thing that counts
REACH = 3  # cells around a centre over which colour is pooled


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that the judge sees; centre and size as shares of the picture's side, 0..1."""

    noun: str
    colour: str  # the named colour that fits best, also for things in their natural colours
    x: float
    y: float
    size: float
    confidence: float


class Residual(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(*_normed(width, width, 3), nn.ReLU(), *_normed(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Update features [B, width, h, w]."""
        return F.relu(x + self.inner(x))


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)


def _down(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(*_normed(inputs, outputs, kernel, stride=2), nn.ReLU())


class Judge(nn.Module):
    """Find things by a heat map per noun (CenterNet, arXiv:1904.07850), with the colour pooled over each thing.

    Fully convolutional: a picture of twice the side is read at twice as many cells.

    Example:
        >>> judge = Judge.from_pretrained("a")
        >>> from ddt_data import SceneConfig, SceneGenerator, render
        >>> scene = SceneGenerator(SceneConfig(), seed=0)[0]
        >>> [seen.noun for seen in judge.read([render(scene, SceneConfig())])[0]] == list(scene.counts)
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_down(3, 24, 5), _down(24, 64, 3))
        self.fine = Residual(64)
        self.coarse = nn.Sequential(_down(64, 96, 3), Residual(96), Residual(96))
        self.lateral = nn.Conv2d(96, 64, 1)
        self.join = Residual(64)
        self.heat = nn.Conv2d(64, len(NOUNS), 1)
        self.size = nn.Conv2d(64, 1, 1)
        self.offset = nn.Conv2d(64, 2, 1)
        self.tint = nn.Sequential(_down(3, 24, 5), nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.ReLU())
        self.colour = nn.Conv2d(32 + 64, len(COLOURS) + 1, 1)  # and the weight of a cell in the pool
        nn.init.constant_(self.heat.bias, -4.0)  # few cells are a centre

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Read images [B, 3, H, W] in [-1, 1], H and W divisible by 8, into maps over cells [B, ., H/4, W/4].

        Returns:
            `heat` [B, N, h, w] logits of a centre; `size` [B, 1, h, w] log of the side in cells; `offset` [B, 2, h, w]
            of the centre within its cell (x, y), 0..1; `colour` [B, C + 1, h, w] logits and, last, the pooling weight.
        """
        cells = self.maps(images)[-1]
        return {
            "heat": self.heat(cells),
            "size": self.size(cells),
            "offset": self.offset(cells).sigmoid(),
            "colour": self.colour(torch.cat([self.tint(images), cells], dim=1)),
        }

    def features(self, images: Tensor) -> Tensor:
        """Pool the last of the `maps` of images [B, 3, H, W]: mean and deviation of each channel, [B, 128].

        Of sets of pictures their Frechet distance says how alike they are to this judge.

        Example:
            >>> Judge.from_pretrained("a").features(torch.zeros(2, 3, 32, 32)).shape
            torch.Size([2, 128])
        """
        cells = self.maps(images)[-1].flatten(2)
        return torch.cat([cells.mean(2), cells.std(2)], dim=1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """See images [B, 3, H, W] in [-1, 1], H and W divisible by 8, at three depths: cells of 4, 8 and 4 pixels.

        Example:
            >>> [list(seen.shape) for seen in Judge.from_pretrained("a").maps(torch.zeros(1, 3, 32, 32))]
            [[1, 64, 8, 8], [1, 96, 4, 4], [1, 64, 8, 8]]
        """
        near = self.fine(self.stem(images))
        far = self.coarse(near)
        return [near, far, self.join(near + F.interpolate(self.lateral(far), scale_factor=2.0, mode="nearest"))]

    @staticmethod
    def pool_colour(colour: Tensor, row: Tensor, x: Tensor, y: Tensor, side: Tensor) -> Tensor:
        """Average colour logits over things, [n, C], each cell by its weight and its nearness to the middle.

        Args:
            colour: Map [B, C + 1, h, w] of `forward`.
            row: Picture of each of n things, int64 [n].
            x: Their centres [n] from the left, in cells.
            y: Their centres [n] from the top, in cells.
            side: Their sides [n], in cells.
        """
        steps = torch.arange(-REACH, REACH + 1, device=x.device)
        columns = x.floor().long()[:, None] + steps  # [n, window]
        lines = y.floor().long()[:, None] + steps
        height, width = colour.shape[-2:]
        inside = ((lines >= 0) & (lines < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        window = colour[
            row[:, None, None], :, lines.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]
        ]  # [n, window, window, C + 1]
        away = ((columns + 0.5 - x[:, None]).square()[:, None] + (lines + 0.5 - y[:, None]).square()[:, :, None]) / (
            side[:, None, None] * 0.35
        ).square()
        weight = window[..., -1].clamp(-8, 8) - away
        weight = weight.masked_fill(~inside, float("-inf")).flatten(1).softmax(1)
        return (window[..., :-1].flatten(1, 2) * weight[..., None]).sum(1)

    @torch.inference_mode()
    def read(self, images: Sequence | Tensor, canvas: int = CANVAS, batch_size: int = 64) -> list[list[Seen]]:
        """List the things in each picture, the surest first.

        Args:
            images: Float [B, 3, H, W] in [-1, 1], or uint8 pictures [H, W, 3] of one size.
            canvas: Side in pixels that they are brought to, divisible by 8; 64 for scenes of up to four things, 128 for
                crowds.
            batch_size: Pictures read at once; the result does not depend on it.
        """
        if not isinstance(images, Tensor):
            pictures = torch.stack([torch.as_tensor(picture) for picture in images])
            images = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        seen: list[list[Seen]] = []
        for some in images.float().clamp(-1, 1).split(batch_size):
            if some.shape[-2:] != (canvas, canvas):
                some = F.interpolate(some, size=(canvas, canvas), mode="bicubic", antialias=True).clamp(-1, 1)
            some = some.to(self.heat.weight.device).contiguous(memory_format=torch.channels_last)
            seen += self._things(self(some))
        return seen

    def _things(self, maps: dict[str, Tensor]) -> list[list[Seen]]:
        """Take the peaks of the heat map; of peaks within half a side of a surer one, only that one."""
        heat = maps["heat"].sigmoid()
        peaks = (heat == F.max_pool2d(heat, 3, stride=1, padding=1)) & (heat > THRESHOLD)
        row, noun, line, column = peaks.nonzero().unbind(1)
        confidence = heat[row, noun, line, column]
        offset = maps["offset"][row, :, line, column]
        x, y = column + offset[:, 0], line + offset[:, 1]
        side = maps["size"][row, 0, line, column].exp()
        tint = self.pool_colour(maps["colour"], row, x, y, side).argmax(1)
        things: list[list[Seen]] = [[] for _ in range(len(heat))]
        cells = heat.shape[-1]
        surest = confidence.argsort(descending=True)
        table = torch.stack([row, noun, tint], 1)[surest].tolist()
        numbers = torch.stack([x / cells, y / cells, side / cells, confidence], 1)[surest].tolist()
        for (b, n, c), (cx, cy, s, sure) in zip(table, numbers, strict=True):
            if all(max(abs(cx - t.x), abs(cy - t.y)) > 0.5 * min(s, t.size) for t in things[b]):
                things[b].append(Seen(NOUNS[n], tuple(COLOURS)[c], cx, cy, s, sure))
        return things

    def save_pretrained(self, path: str | Path) -> None:
        """Write the weights in half precision to one safetensors file, by rename."""
        path = Path(path)
        part = path.with_name(path.name + ".partial")
        weights = {
            name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        save_file(weights, part, metadata={"nouns": " ".join(NOUNS)})
        part.rename(path)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> "Judge":
        """Load an embedded judge, "a" or "b", or a file of `save_pretrained`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it was trained on other nouns, or an embedded one is not the one that was shipped.
        """
        path = judge_file(name_or_path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such judge; embedded ones are: {', '.join(JUDGES)}")
        if (shipped := JUDGES.get(str(name_or_path))) and judge_hash(path) != shipped:
            raise ValueError(f"the judge {path} has hash {judge_hash(path)}, not {shipped}; install ddt-data again")
        with safe_open(path, "pt") as stored:
            if (stored.metadata() or {}).get("nouns") != " ".join(NOUNS):
                raise ValueError(f"the judge {path} was trained on other nouns; train it again")
            weights = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118
        judge = cls()
        counters = {name: t for name, t in judge.state_dict().items() if name.endswith("num_batches_tracked")}
        judge.load_state_dict(weights | counters)
        return judge.eval()


def judge_file(name_or_path: str | Path) -> Path:
    """Find the file of a judge: an embedded name, or a path."""
    if str(name_or_path) in JUDGES:
        return Path(str(files("ddt_data.sceneeval").joinpath("judges", f"{name_or_path}.safetensors")))
    return Path(name_or_path)


def judge_hash(name_or_path: str | Path) -> str:
    """Hash a judge's file, 16 hex digits, for the protocol of a score."""
    return hashlib.sha256(judge_file(name_or_path).read_bytes()).hexdigest()[:16]
