"""A language model that reads and writes text and images.

Shape letters: B prompts, N images, K visual tokens of an image; H, W space.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ddt_llm.batching import ContinuousBatch
from ddt_llm.chat import CHAT_TEMPLATE, generation_config, tokenizer_for_chat
from ddt_llm.denoising import Denoising, stream_denoised
from ddt_llm.expansion import check_vocabulary, unused_rows
from ddt_llm.four_bits import Bits
from ddt_llm.generation import Output, Request, Sampling, Writer, stream_tokens
from ddt_llm.hub import OnHub, local_folder, model_card
from ddt_llm.limits import check_setting
from ddt_llm.loss import TokenLoss, token_loss
from ddt_llm.network import quickest_network
from ddt_llm.opening import open_folder, quiet_transformers
from ddt_llm.positions import most_positions
from ddt_llm.precision import Precision
from ddt_llm.ranks import rank
from ddt_llm.self_test import check_backbone, evaluating
from ddt_llm.sequences import Example, Part, Sequences, Template, Turn, collate
from ddt_llm.settings_file import FORMAT, SETTINGS, read_settings
from ddt_llm.shipped import folder_of
from ddt_llm.streaming import Event, Reader
from ddt_llm.visual_tokenizer import VisualTokenizer
from ddt_llm.vocabulary import VisualVocabulary
from ddt_llm.weights_file import is_shared, write_weights

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Picture = Image | Path | Tensor  # a tensor is float [3, H, W] in [-1, 1], or visual ids int64 [K]
    Prompt = str | Picture | Sequence[str | Picture]


@dataclass(frozen=True)
class Generation:
    """An answer: its text, and its images as visual ids and as pictures."""

    text: str
    ids: Tensor  # int64 [N, K] in tokenizer order
    images: Tensor | None  # float32 [N, 3, H, W] in [-1, 1]; None without images or without a visual tokenizer
    passes: int = 0  # of the network, after that over the prompt


class MultimodalLM(OnHub):
    """A causal LM with a visual vocabulary, its text tokenizer and the template it was trained with.

    Args:
        model, text_tokenizer: What `expand_vocabulary` returned, trained or not.
        template: "caption" after pretraining: a text is a caption to draw, an image is to be described.
            "instruction" after tuning: texts and images in any order go between `USER:` and `ASSISTANT:`.
        visual_fingerprint: Fingerprint of the visual tokenizer whose ids it was trained on, if it has one.

    Raises:
        ValueError: If the model has no visual vocabulary or too few positions for an image and a word, or the template
            is unknown.
    """

    template: Template

    def __init__(
        self,
        model: "PreTrainedModel",
        text_tokenizer: "PreTrainedTokenizerFast",
        template: Template = "caption",
        visual_fingerprint: str | None = None,
    ):
        self.template = template
        check_setting("template", Template, template)
        self.model = model
        self.text_tokenizer = text_tokenizer
        self.visual_fingerprint = visual_fingerprint
        self.vocabulary = VisualVocabulary.from_config(model.config)
        self.sequences = Sequences(self.vocabulary, text_tokenizer, most_positions(model.config))
        # Text tokens that no answer holds.
        special = {*text_tokenizer.all_special_ids, *unused_rows(text_tokenizer).values()}
        self.never = sorted(special - {self.sequences.eos})

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str | None = None,
        precision: Precision = "32",
        *,
        bits: Bits = 32,
    ) -> Self:
        """Load a folder of `save_pretrained`.

        Args:
            folder: Of the model, an id of the Hub (`owner/name`), or one that comes along, by name.
            device: Where the weights shall lie; on the meta device they are not read.
            precision: "32", or "bf16" for weights of half the size; logits are float32 either way.
            bits: In which linear layers other than the head are kept; 4, for adapters, takes the extra `qlora`.

        Raises:
            FileNotFoundError: If the folder is missing or unfinished.
            ValueError: If its format is unknown, its `ddt.json` belongs to another model, `open_folder` refuses it, or
                there is no such precision.
        """
        check_setting("precision", Precision, precision)
        settings_file = (folder := local_folder(folder_of(folder, "model"))) / SETTINGS
        if not settings_file.is_file():
            raise FileNotFoundError(f"{settings_file} does not exist: save the model with MultimodalLM.save_pretrained")
        settings = read_settings(settings_file)
        vocabulary = VisualVocabulary.from_settings(settings, str(settings_file))
        empty = torch.device(device or "cpu").type == "meta"
        model, text_tokenizer = open_folder(folder, empty=empty, bits=bits)
        lm = cls(model, text_tokenizer, settings["template"], settings["visual_fingerprint"])
        if vocabulary != lm.vocabulary:
            raise ValueError(f"{settings_file} does not belong to the config.json beside it: save the model again")
        check_vocabulary(model, text_tokenizer, vocabulary)
        if empty:  # shapes without values cannot be tried
            return lm
        if precision == "bf16":
            quickest_network(model)  # and what else it can, while rounding is smaller than any fault
            for weight in model.parameters():  # not buffers: the angles of far positions need fp32
                weight.data = weight.data.bfloat16()
            model.to(device)
        else:
            check_backbone(model.to(device))
        return lm

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a plain transformers folder with `ddt.json` beside the model.

        Tokenizer and generation defaults are what other tools need (`ddt_llm.chat`), whatever those of the base were.
        Every file appears whole, by rename, and `ddt.json` last: a folder without it is unfinished. Of a model that
        ranks share (FSDP2) all of them have to call this, and the first one writes.
        """
        shared = dict(self.model.named_parameters()) if is_shared(self.model) else {}  # tied ones once
        if rank():
            write_weights(None, shared)
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"format": FORMAT, **asdict(self.vocabulary)}
        settings |= {"template": self.template, "visual_fingerprint": self.visual_fingerprint}
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as scratch, quiet_transformers():
            if shared:
                self.model.config.save_pretrained(scratch)
                write_weights(Path(scratch) / "model.safetensors", shared)
            else:
                self.model.save_pretrained(scratch)
            longest = most_positions(self.model.config)
            tokenizer_for_chat(self.sequences, self.template, longest).save_pretrained(scratch)
            generation_config(self.sequences, self.never, longest).save_pretrained(scratch)
            (Path(scratch) / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
            for file in (SETTINGS, CHAT_TEMPLATE):  # the second may be missing in what follows
                (folder / file).unlink(missing_ok=True)
            for file in sorted(Path(scratch).iterdir(), key=lambda file: file.name == SETTINGS):
                shutil.copymode(Path(scratch) / SETTINGS, file)  # safetensors lets nobody else read
                file.replace(folder / file.name)

    def card(self, repo_id: str, licence: str | None = None) -> str:
        """Return its model card; see `ddt_llm.hub.model_card`."""
        seen = self.vocabulary
        facts = {
            "backbone": self.model.config.model_type,
            "weights": f"{sum(weight.numel() for weight in self.model.parameters()):,}",
            "an image": f"{seen.num_tokens} ids of {seen.codebook_size:,}, written {seen.visual_order}",
            "template": self.template,
            "ids of the tokenizer with the fingerprint": self.visual_fingerprint or "(none)",
        }
        what = "Text and images in one language model (arXiv:2504.14666); a transformers folder with a chat template."
        usage = f'lm = ddt_llm.MultimodalLM.from_pretrained("{repo_id}")\nlm.generate("a red fox").ids  # int64 [N, K]'
        return model_card(repo_id.rpartition("/")[2], what, usage, facts, licence, ["ddt", "text-to-image"])

    def generate(
        self,
        prompt: "Prompt",
        visual: VisualTokenizer | None = None,
        *,
        seed: int = 0,
        sketch: "Picture | None" = None,
        **settings: Any,
    ) -> Generation:
        """Answer one prompt: a text, an image, or a list of both. Settings are those of `generate_batch`."""
        sketches = None if sketch is None else [sketch]
        return self.generate_batch([prompt], visual, seed=seed, sketches=sketches, **settings)[0]

    def generate_batch(
        self,
        prompts: "Sequence[Prompt]",
        visual: VisualTokenizer | None = None,
        *,
        output: Output = "auto",
        seed: int = 0,
        history: Sequence[Turn] = (),
        sketches: "Sequence[Picture] | None" = None,
        keep_tokens: int | Sequence[int] = 0,
        denoising: Denoising | None = None,
        batch_size: int = 64,
        **settings: Any,
    ) -> list[Generation]:
        """Answer several prompts.

        Args:
            prompts: Each a text, an image, or a list of both. An image is a PIL image, a `pathlib.Path`, a float tensor
                [3, H, W] in [-1, 1] or its visual ids int64 [K].
            visual: Encodes images of the prompts and decodes those of the answers; needed for neither if prompts hold
                ids and ids are enough as answer.
            output: "image" writes one image and nothing else, "text" no image, "auto" leaves it to the model; with
                template "caption", "auto" draws a text and describes an image.
            seed: Prompt i is sampled with `seed + i`, so its answer is that of `generate(prompts[i], seed=seed + i)`.
            history: Earlier turns of template "instruction", before every prompt; their images are visual ids.
            sketches: An image for each prompt, of which the answer keeps the `keep_tokens` ids that are written first:
                the coarsest. The model writes the others, so it finishes a sketch, or draws the fine part anew.
            keep_tokens: Ids kept of the sketches, fewer than K; or their indices, and `denoising` fills in the others.
            denoising: Writes by blocks in parallel, for a model that was adapted to it; None writes token by token.
            settings: Fields of `Sampling`: guidance_scale, temperature, top_k, top_p, the last three also as
                text_temperature and so on, max_text_tokens, max_images.

        Raises:
            ValueError: If the visual tokenizer does not match the model, one is needed and missing, a setting is out of
                range, or a prompt is too long or does not fit the template.
        """
        sampling = Sampling(**settings)
        requests = self._requests(prompts, visual, output, seed, history)
        if sketches is not None:
            requests = self._with_sketches(requests, _parts(sketches, visual), keep_tokens)
        answers = []
        with evaluating(self.model):
            for first in range(0, len(requests), batch_size):
                *_, writers = self._write(requests[first : first + batch_size], sampling, denoising)
                answers += writers
        return self._generations(answers, visual, batch_size)

    def stream(
        self,
        prompt: "Prompt",
        visual: VisualTokenizer | None = None,
        *,
        output: Output = "auto",
        seed: int = 0,
        history: Sequence[Turn] = (),
        preview_every: int = 0,
        denoising: Denoising | None = None,
        **settings: Any,
    ) -> Iterator[Event]:
        """Answer one prompt as `generate` does, and yield every token when it is written.

        Settings are those of `generate_batch`. `preview_every` tokens of an image lie between two previews of it; 0
        shows only whole images. Previews need a visual tokenizer, and a model that writes the coarsest tokens first.

        Yields:
            What each step added: text, or a token of an image.

        Raises:
            ValueError: If `generate_batch` would raise one.
        """
        request = self.request(prompt, visual, output=output, seed=seed, history=history)
        reader = Reader(self.vocabulary, self.text_tokenizer, visual, preview_every)
        with evaluating(self.model):
            for (writer,) in self._write([request], Sampling(**settings), denoising):
                yield from reader.read(writer.tokens)

    def continuous_batch(self, slots: int, longest: int | None = None) -> ContinuousBatch:
        """Make a batch that writes answers of requests that come and go, for a server; see `ContinuousBatch`.

        The model stays in evaluation mode.

        Args:
            slots: Answers that are written at once.
            longest: Most tokens of a request with its answer, for which a cache is reserved; None: the positions that
                the model has.

        Raises:
            ValueError: If the model cannot write, or has no limit of positions and `longest` is None.
        """
        self.model.eval()
        return ContinuousBatch(self.model, self.vocabulary, slots, longest, never=self.never, **self._marks())

    def request(
        self,
        prompt: "Prompt",
        visual: VisualTokenizer | None = None,
        *,
        output: Output = "auto",
        seed: int = 0,
        history: Sequence[Turn] = (),
    ) -> Request:
        """Lay a prompt out for `ContinuousBatch.submit`. Arguments and errors are those of `generate_batch`."""
        (request,) = self._requests([prompt], visual, output, seed, history)
        return request

    def score(self, examples: Sequence[Example], batch_size: int = 64) -> TokenLoss:
        """Compute the cross-entropy of examples: `.bits_per_text_token`, `.bits_per_visual_token`, sums and counts."""
        losses = []
        with evaluating(self.model), torch.inference_mode():
            for first in range(0, len(examples), batch_size):
                batch = collate(examples[first : first + batch_size], self.sequences.pad)
                batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
                losses.append(token_loss(self.model, self.vocabulary, **batch))
        return sum(losses[1:], losses[0])

    def _requests(
        self,
        prompts: "Sequence[Prompt]",
        visual: VisualTokenizer | None,
        output: Output,
        seed: int,
        history: Sequence[Turn],
    ) -> list[Request]:
        if visual is not None:
            self._check(visual)
        return [
            Request(self.sequences.prompt(parts, self.template, history), seed + i, self._output(parts, output))
            for i, parts in enumerate(_parts(prompts, visual))
        ]

    def _with_sketches(
        self, requests: list[Request], sketches: list[list[Part]], keep: int | Sequence[int]
    ) -> list[Request]:
        last, order = self.vocabulary.num_tokens - 1, self.vocabulary.order
        if not all(0 <= index <= last for index in ([keep] if isinstance(keep, int) else keep)):
            raise ValueError(f"keep_tokens ({keep}) must lie in 0 to {last}")
        tokens = [self.vocabulary.to_tokens(ids).tolist() for (ids,) in sketches]
        if isinstance(keep, int):
            kept = [{"image_start": tuple(row[:keep])} for row in tokens]
        else:
            fixed = [index in keep for index in order]
            kept = [{"given": tuple(t if fix else None for t, fix in zip(row, fixed, strict=True))} for row in tokens]
        return [replace(request, output="image", **some) for request, some in zip(requests, kept, strict=True)]

    def _write(
        self, requests: list[Request], sampling: Sampling, denoising: Denoising | None = None
    ) -> Iterator[list[Writer]]:
        what, marks = (self.model, self.vocabulary, requests, sampling), {"never": self.never, **self._marks()}
        return stream_tokens(*what, **marks) if denoising is None else stream_denoised(*what, denoising, **marks)

    def _marks(self) -> dict[str, Any]:
        return {"eos": self.sequences.eos, "unconditional": self.sequences.prompt([], self.template)}

    def _output(self, parts: list[Part], output: Output) -> Output:
        if output == "auto" and self.template == "caption":
            return "image" if parts and isinstance(parts[0], str) else "text"
        return output

    def _check(self, visual: VisualTokenizer) -> None:
        for name in ("codebook_size", "num_tokens"):
            if (theirs := getattr(visual, name)) != (ours := getattr(self.vocabulary, name)):
                raise ValueError(
                    f"the visual tokenizer has {name} {theirs}, the language model {ours}: they do not match"
                )
        theirs = getattr(visual, "fingerprint", None)
        if theirs and self.visual_fingerprint and theirs != self.visual_fingerprint:
            raise ValueError(
                f"the visual tokenizer has fingerprint {theirs}, the language model was trained on ids of "
                f"{self.visual_fingerprint}: load the tokenizer that wrote its training ids"
            )

    def _generations(self, writers: list[Writer], visual: VisualTokenizer | None, size: int) -> list[Generation]:
        answers = [writer.tokens for writer in writers]
        ids = [self._visual_ids(answer) for answer in answers]
        texts = [[token for token in answer if token < self.vocabulary.text_size] for answer in answers]
        texts = [self.text_tokenizer.decode(text, skip_special_tokens=True).strip() for text in texts]
        images: list[Tensor | None] = [None] * len(answers)
        drawn = torch.cat(ids) if ids else torch.empty(0)
        if visual is not None and len(drawn):
            pictures = torch.cat([visual.decode(some) for some in drawn.split(size)])
            split = pictures.split([len(some) for some in ids])
            images = [some if len(some) else None for some in split]
        passes = [writer.passes for writer in writers]
        return [Generation(*each) for each in zip(texts, ids, images, passes, strict=True)]

    def _visual_ids(self, answer: list[int]) -> Tensor:
        visual = self.vocabulary.visual
        tokens = [token for token in answer if visual.start <= token < visual.stop]
        return self.vocabulary.to_ids(torch.tensor(tokens, dtype=torch.long).view(-1, self.vocabulary.num_tokens))


def _parts(prompts: "Sequence[Prompt]", visual: VisualTokenizer | None) -> list[list[Part]]:
    """Turn prompts into lists of texts and visual ids; all pictures are encoded in one call."""
    listed = [list(prompt) if isinstance(prompt, list | tuple) else [prompt] for prompt in prompts]
    pictures = [part for parts in listed for part in parts if _is_picture(part)]
    if not pictures:
        return listed
    if visual is None:
        raise ValueError("a prompt holds a picture: pass visual=, the tokenizer that turns pictures into ids")
    encoded = iter(visual.encode(pictures).cpu())
    return [[next(encoded) if _is_picture(part) else part for part in parts] for parts in listed]


def _is_picture(part: Any) -> bool:
    return not isinstance(part, str) and not (isinstance(part, Tensor) and not part.is_floating_point())
