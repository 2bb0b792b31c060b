"""A visual tokenizer for language models: one encoder and one decoder that belong together."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ddt_tokenizer.hub import OnHub, local_folder, model_card
from ddt_tokenizer.precision import Precision, recorded
from ddt_tokenizer.shipped import is_shipped, shipped
from ddt_tokenizer.tokenizer import DDTTokenizer

if TYPE_CHECKING:
    from ddt_decoder import DDTDecoder, DDTRenderer

PARTS = ("tokenizer", "decoder", "renderer", "model")  # folders of a run that hold what it exported


class Codec(OnHub):
    """Pictures to ids and back; what `ddt_llm` calls a `VisualTokenizer`. Needs ddt-decoder (extra `[decode]`).

    Args:
        num_steps: Denoising steps of `decode`; None: those of its configuration.
        renderer: Draws whole sets of ids in one step in the decoder's place.

    Raises:
        ValueError: If the two do not belong together; names what differs.
    """

    def __init__(
        self,
        tokenizer: DDTTokenizer,
        decoder: "DDTDecoder",
        num_steps: int | None = None,
        renderer: "DDTRenderer | None" = None,
    ):
        self.tokenizer, self.decoder = tokenizer.eval(), decoder.eval()
        self.num_steps = decoder.config.usual_steps if num_steps is None else num_steps
        self.renderer = None if renderer is None else renderer.eval()
        self.codebook_size, self.num_tokens = tokenizer.codebook_size, tokenizer.num_tokens
        self.image_size = tokenizer.config.image_size
        self.fingerprint = tokenizer.fingerprint()
        for part, drawer in (("decoder", decoder), ("renderer", renderer)):
            if drawer is None:
                continue
            for name, mine, theirs in (
                ("codebook_size", self.codebook_size, drawer.config.codebook_size),
                ("num_tokens", self.num_tokens, drawer.num_tokens),
                ("image_size", self.image_size, drawer.config.image_size),
                ("fingerprint", self.fingerprint, drawer.tokenizer_fingerprint),
            ):
                if mine != theirs:
                    both = f"{name}: {mine}, {theirs}"
                    raise ValueError(f"tokenizer and {part} do not belong together ({both}); load both of one run")

    @property
    def precision(self) -> Precision:
        """In which pictures are encoded; decoder and renderer have their own."""
        return self.tokenizer.precision

    @property
    def identity(self) -> dict[str, Any]:
        """What id shards record of the tokenizer that wrote them; that of the tokenizer, hashed once."""
        sizes = {"codebook_size": self.codebook_size, "num_tokens": self.num_tokens}
        return {"fingerprint": self.fingerprint, **sizes, **recorded(self.precision)}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        num_steps: int | None = None,
        renderer: str | Path | None = None,
        vae: str | None = None,
        precision: Precision = "32",
    ) -> Self:
        """Load the `tokenizer` and `decoder` folders of a `ddt train-tokenizer` run.

        Args:
            folder: The run, or one of the two folders; or an id of the Hub, `owner/name`, or the name of a model that
                comes with both packages.
            renderer: A `ddt train-renderer` run of that tokenizer, or its `renderer` folder.
            vae: Where the autoencoder of its latents lies, if not where it did in training.
            precision: In which the networks compute, to read and to draw: "32", or "bf16".

        Raises:
            FileNotFoundError: If a run is missing or unfinished.
            ValueError: If the parts do not belong together.
        """
        ddt_decoder = _installed_decoder()
        if is_shipped(folder):
            tokenizer_folder = decoder_folder = folder
        else:
            folder = run_of(local_folder(folder, "tokenizer", "decoder"))
            tokenizer_folder, decoder_folder = folder / "tokenizer", folder / "decoder"
            if not (decoder_folder / "config.json").is_file():
                raise FileNotFoundError(
                    f"no finished tokenizer run in '{folder}'; train one with: ddt train-tokenizer, or name one that "
                    f"comes with ddt-tokenizer: {', '.join(shipped())}"
                )
        tokenizer = DDTTokenizer.from_pretrained(tokenizer_folder, vae, precision).to(device)
        decoder = ddt_decoder.DDTDecoder.from_pretrained(decoder_folder, vae, precision).to(device)
        if renderer is not None:
            part = run_of(local_folder(renderer, "renderer")) / "renderer"
            if not (part / "config.json").is_file():
                raise FileNotFoundError(f"no finished renderer run in '{renderer}'; train one with: ddt train-renderer")
            renderer = ddt_decoder.DDTRenderer.from_pretrained(part, vae, precision).to(device)
        return cls(tokenizer, decoder, num_steps, renderer)

    @classmethod
    def from_selftok(
        cls,
        path: str | Path,
        vae: str | None = None,
        num_steps: int | None = None,
        schedule: tuple[int, ...] | None = None,
        **heads: int,
    ) -> Self:
        """Load both halves of a public Selftok checkpoint (`tokenizer_512_ckpt.pth`).

        Args:
            path: The `.pth` file; nothing but tensors is unpickled.
            vae: Folder or Hub id of the autoencoder of Stable Diffusion 3.
            schedule: Tokens revealed in each equal piece of time; None: that of the released ones.
            heads: `num_heads` and `image_heads` of the encoder, where they are not those of the released ones.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a key is missing or unknown, or a shape does not fit.
        """
        ddt_decoder = _installed_decoder()
        reader = DDTTokenizer.from_selftok(path, vae=vae, **heads)
        decoder = ddt_decoder.DDTDecoder.from_selftok(
            path, vae=vae, schedule=schedule, image_size=reader.config.image_size
        )
        decoder.set_codebook(reader.embed(torch.arange(reader.codebook_size)), reader.fingerprint())
        return cls(reader, decoder, num_steps)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `tokenizer/` and `decoder/`, so that the folder is one that `from_pretrained` takes."""
        self.tokenizer.save_pretrained(Path(folder) / "tokenizer")
        self.decoder.save_pretrained(Path(folder) / "decoder")

    def card(self, repo_id: str, licence: str | None = None) -> str:
        """Return its model card; see `ddt_tokenizer.hub.model_card`."""
        size, steps = self.image_size, self.decoder.config.usual_steps
        facts = {
            "images": f"{size} x {size} pixels",
            "written as": f"{self.num_tokens} ids of {self.codebook_size:,}: {self.tokenizer.bits:,.0f} bits an image",
            "drawn in": "one step" if steps == 1 else f"{steps} steps",
            "fingerprint": self.fingerprint,
        }
        what = (
            "A visual tokenizer and its decoder: images to discrete diffusion timestep tokens (arXiv:2504.14666), and "
            "back, also from the coarsest ids alone."
        )
        usage = f"""from ddt_tokenizer import Codec

codec = Codec.from_pretrained("{repo_id}")
ids = codec.encode(["fox.png"])  # int64 [1, {self.num_tokens}]
images = codec.decode(ids)  # float32 [1, 3, {size}, {size}] in [-1, 1]
sketch = codec.decode(ids, keep_tokens={max(1, self.num_tokens // 4)})"""
        return model_card(repo_id.rpartition("/")[2], what, usage, facts, licence, ["ddt", "image-tokenizer"])

    @torch.inference_mode()
    def encode(self, images: Sequence[Any] | Tensor) -> Tensor:
        """Write pictures (PIL, paths, tensors [3, H, W], or one tensor [N, 3, H, W] in [-1, 1]) as ids [N, K]."""
        if not isinstance(images, Tensor) and all(isinstance(image, Tensor) for image in images):
            images = torch.stack(list(images))
        return self.tokenizer.encode(images).cpu()

    def decode(self, ids: Tensor, keep_tokens: int | None = None, **settings: Any) -> Tensor:
        """Draw ids [N, K], or their n coarsest, as images float32 [N, 3, H, W] in [-1, 1].

        Settings are those of `DDTDecoder.decode`. A renderer takes none: with settings, or from a part of the ids if it
        was not taught prefixes, the decoder draws.
        """
        ids = ids.to(self.decoder.codebook.device)
        if self.renderer and not settings and (keep_tokens is None or (keep_tokens and self.renderer.prefixes)):
            return self.renderer.decode(ids, keep_tokens).cpu()
        return self.decoder.decode(ids, keep_tokens=keep_tokens, **{"num_steps": self.num_steps} | settings).cpu()


def run_of(folder: str | Path) -> Path:
    """Return the run that a folder is, or whose exported model it holds.

    Example:
        >>> import tempfile
        >>> part = Path(tempfile.mkdtemp(), "mine", "tokenizer")
        >>> part.mkdir(parents=True)
        >>> _ = (part / "config.json").write_text("{}")
        >>> run_of(part).name, run_of(part.parent).name
        ('mine', 'mine')
    """
    folder = Path(folder)
    is_part = folder.name in PARTS and (folder / "config.json").is_file()
    return folder.parent if is_part else folder


def _installed_decoder() -> ModuleType:
    try:
        import ddt_decoder
    except ModuleNotFoundError as error:
        raise ValueError("a Codec draws with ddt-decoder, which is not installed; see the extra [decode]") from error
    return ddt_decoder
