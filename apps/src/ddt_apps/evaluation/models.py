"""What can be evaluated: any object with the methods below, ours or a peer's behind an adapter."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from ddt_apps.models import load_pair, load_renderer_run
from ddt_apps.run.devices import pick_device_for
from ddt_apps.run.own_code import load_named
from ddt_llm import Denoising, MultimodalLM, collate
from ddt_llm.head import head_nats
from ddt_tokenizer.codec import Codec, run_of
from ddt_tokenizer.precision import Precision, recorded
from ddt_tokenizer.shipped import is_shipped

# Images are float32 [B, 3, H, W] in [-1, 1] everywhere. A dict `identity`, if there is one, is recorded with scores; a
# `precision` other than "32" is part of their protocol.


class Tokenizes(Protocol):
    """What `evaluate reconstruction` and the tokenizer's ceilings need.

    `decode` may take `keep_tokens`, the number of coarsest ids to draw from; then prefixes are scored too.
    """

    codebook_size: int
    num_tokens: int
    image_size: int

    def encode(self, images: Tensor) -> Tensor:
        """Write images as ids int64 [B, K]."""
        ...

    def decode(self, ids: Tensor) -> Tensor:
        """Draw ids."""
        ...


class Draws(Protocol):
    """What `evaluate scenes` needs."""

    def draw(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Draw a picture for each prompt; prompt i with seed + i, whatever else is in the batch."""
        ...


class Edits(Protocol):
    """What `evaluate edits` needs."""

    def edit(self, images: Tensor, instructions: Sequence[str], seed: int) -> Tensor:
        """Change each image as its instruction says."""
        ...


class Answers(Protocol):
    """What `evaluate answers` needs."""

    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Answer a question about each image."""
        ...


class Captions(Protocol):
    """What `evaluate captions` needs."""

    def caption(self, images: Tensor) -> list[str]:
        """Describe each image."""
        ...


class Foretells(Protocol):
    """What `evaluate language` needs, beside a `codec`."""

    def bits(self, ids: Tensor, captions: Sequence[str]) -> Tensor:
        """Return -log2 p of each of the ids [B, K], given those written before it and the caption; "" is none."""
        ...


class Assistant:
    """A language model of ours with its codec: draws, edits, answers and describes.

    Args:
        lm: From `ddt pretrain` or `ddt sft`.
        codec: Whose ids it was trained on.
        guidance: Of drawing; above 1 closer to the prompt.
        temperature: Of drawing; edits and texts take the likeliest token.
        denoising: Of drawing, for a model of `ddt adapt`; None draws id by id.

    Attributes:
        passes: Of the network, for each picture that was drawn.
    """

    def __init__(
        self,
        lm: MultimodalLM,
        codec: Codec,
        guidance: float = 1.5,
        temperature: float = 0.7,
        denoising: Denoising | None = None,
    ):
        self.lm, self.codec, self.guidance, self.temperature = lm, codec, guidance, temperature
        self.denoising, self.passes = denoising, []
        self.lm.model.eval()
        self.image_size = codec.image_size
        self.identity = {"tokenizer": codec.fingerprint, "guidance": guidance, "temperature": temperature}
        self.identity |= {} if denoising is None else {"denoising": asdict(denoising)}

    @property
    def precision(self) -> Precision:
        """In which it reads, writes and draws; bf16 if a part does."""
        return "bf16" if self.lm.model.dtype == torch.bfloat16 else self.codec.precision

    def draw(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Draw a picture for each prompt."""
        settings = {"guidance_scale": self.guidance, "temperature": self.temperature, "denoising": self.denoising}
        drawn = self.lm.generate_batch(list(prompts), self.codec, output="image", seed=seed, **settings)
        self.passes += [each.passes for each in drawn]
        return _images(drawn)

    def edit(self, images: Tensor, instructions: Sequence[str], seed: int) -> Tensor:
        """Change each image as its instruction says."""
        prompts = [[ids, text] for ids, text in zip(self.codec.encode(images), instructions, strict=True)]
        return _images(self.lm.generate_batch(prompts, self.codec, output="image", temperature=0.0, seed=seed))

    def answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Answer a question about each image."""
        prompts = [[ids, text] for ids, text in zip(self.codec.encode(images), questions, strict=True)]
        settings = {"output": "text", "temperature": 0.0, "max_text_tokens": 8}
        return [answer.text.strip() for answer in self.lm.generate_batch(prompts, **settings)]

    def caption(self, images: Tensor) -> list[str]:
        """Describe each image."""
        ask = ["describe the picture"] if self.lm.template == "instruction" else []
        prompts = [[ids, *ask] for ids in self.codec.encode(images)]
        settings = {"output": "text", "temperature": 0.0, "max_text_tokens": 40}
        return [answer.text.strip() for answer in self.lm.generate_batch(prompts, **settings)]

    def bits(self, ids: Tensor, captions: Sequence[str]) -> Tensor:
        """Return -log2 p of each of the ids [B, K], given those written before it and the caption; "" is none."""
        return visual_bits(self.lm, ids, captions)


def visual_bits(lm: MultimodalLM, ids: Tensor, captions: Sequence[str]) -> Tensor:
    """Return -log2 p of each of the ids [B, K], given those written before it and the caption; "" is none."""
    if lm.template == "caption":
        examples = [lm.sequences.text_to_image(*pair) for pair in zip(captions, ids, strict=True)]
    else:
        examples = [lm.sequences.instruction([c] if c else [], [own]) for c, own in zip(captions, ids, strict=True)]
    tokens = collate(examples, lm.sequences.pad)["input_ids"].to(lm.model.device)
    hidden = lm.model.base_model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    targets, rows = tokens[:, 1:], lm.vocabulary.visual
    visual = (targets >= rows.start) & (targets < rows.stop)
    bits = head_nats(lm.model, hidden[visual], targets[visual]).view(ids.shape).cpu() / math.log(2)
    written = torch.arange(lm.vocabulary.num_tokens) + lm.vocabulary.text_size
    return bits[:, lm.vocabulary.to_ids(written)]  # in the tokenizer's order


def _images(answers: list) -> Tensor:
    return torch.cat([answer.images for answer in answers])


def load_model(
    source: str,
    guidance: float = 1.5,
    temperature: float = 0.7,
    precision: Precision = "32",
    denoising: Denoising | None = None,
) -> Any:
    """Load what is to be evaluated.

    Args:
        source: Folder of a run (`ddt train-tokenizer` gives its codec, `ddt train-renderer` that of its tokenizer with
            the renderer, `ddt pretrain` and `ddt sft` an `Assistant`), the name of a codec that comes with the
            packages, or `file.py:function` whose function returns an object with the methods of this module.
        guidance, temperature: Of drawing, for runs.
        precision: In which a run computes.
        denoising: Of drawing, for runs of `ddt adapt`.

    Raises:
        FileNotFoundError: If there is no such run or file.
        ValueError: If the file has no such function, or is to compute in a precision.
    """
    file, _, function = source.rpartition(":")
    if file.endswith(".py"):
        if precision != "32":
            raise ValueError(f"precision={precision} is for runs; '{file}' has to load its model in it by itself")
        if not callable(make := load_named(source)):
            raise ValueError(f"'{function}' of '{file}' is no function that returns the model")
        return make()
    if is_shipped(source):
        return Codec.from_pretrained(source, pick_device_for(precision), precision=precision)
    run = run_of(source)
    if (run / "renderer" / "config.json").is_file():
        return load_renderer_run(run, pick_device_for(precision), precision)
    if (run / "tokenizer" / "config.json").is_file() and (run / "decoder").is_dir():
        return Codec.from_pretrained(run, pick_device_for(precision), precision=precision)
    lm, codec = load_pair(run, None, precision)
    return Assistant(lm, codec, guidance, temperature, denoising)


def codec_of(model: Any) -> Tokenizes | None:
    """Return the tokenizer of a model: itself, its `codec`, or None."""
    return model if hasattr(model, "encode") else getattr(model, "codec", None)


def prefixes_of(codec: Tokenizes) -> list[int]:
    """Return 1, 2, 4, ... below K, the numbers of coarsest ids to draw from; none if `decode` cannot leave ids out."""
    if "keep_tokens" not in inspect.signature(codec.decode).parameters:
        return []
    return [2**i for i in range(codec.num_tokens.bit_length()) if 2**i < codec.num_tokens]


def described(model: Any, name: str) -> dict[str, Any]:
    """Return what scores record of a model: its name in tables, and its `identity` where it has one."""
    return {"name": name, **getattr(model, "identity", {})}


def computed(model: Any) -> dict[str, str]:
    """Return what a protocol holds of the precision in which a model computes: nothing of the exact one."""
    return recorded(getattr(model, "precision", "32"))


def need(model: Any, method: str, verb: str) -> None:
    """Refuse a model that cannot do what is to be measured.

    Raises:
        ValueError: If it lacks the method.
    """
    if not hasattr(model, method):
        raise ValueError(f"evaluate {verb} needs a model with {method}(); {type(model).__name__} has none")
