"""ddt export diffusers: text to images as a pipeline of diffusers, and what loads it."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from ddt_apps.models import load_pair
from ddt_apps.run.atomic import writing
from ddt_decoder import DDTDecoder
from ddt_llm import MultimodalLM
from ddt_tokenizer import Codec, DDTTokenizer
from ddt_tokenizer.hub import local_folder
from ddt_tokenizer.images import to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image

LOADER = "ddt_pipeline"  # the file by which `DiffusionPipeline` finds the class
LOADER_CODE = f'"""Finds the class in the installed package ddt-apps."""\n\nfrom {__name__} import DDTPipeline\n'


class Part(ModelMixin, ConfigMixin):
    """One of our models as a component that diffusers saves and loads; the folder is that of the model itself."""

    config_name = "config.json"
    kind: ClassVar[type[nn.Module]]

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write the model's own folder."""
        self.model.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> "Part":
        """Load the model's own folder, in float32."""
        return cls(cls.kind.from_pretrained(folder))


class TokenizerPart(Part):
    """Images to ids."""

    kind = DDTTokenizer


class DecoderPart(Part):
    """Ids to images."""

    kind = DDTDecoder


class DDTPipeline(DiffusionPipeline):
    """Text to images, and with a model tuned on instructions text and images to images.

    Args:
        language_model, text_tokenizer: A transformers model and tokenizer with a visual vocabulary.
        visual_tokenizer, decoder: The pair whose ids the model was trained on.
        template: See `MultimodalLM`.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        text_tokenizer: PreTrainedTokenizerFast,
        visual_tokenizer: TokenizerPart,
        decoder: DecoderPart,
        template: str = "caption",
    ):
        super().__init__()
        self.register_modules(
            language_model=language_model,
            text_tokenizer=text_tokenizer,
            visual_tokenizer=visual_tokenizer,
            decoder=decoder,
        )
        self.register_to_config(template=template)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DDTPipeline":
        """Load a pipeline folder, or one of the Hub, without the code in it that leads `DiffusionPipeline` here."""
        folder = local_folder(folder, "language_model", "text_tokenizer", "visual_tokenizer", "decoder")
        return cls(
            AutoModelForCausalLM.from_pretrained(folder / "language_model", dtype=torch.float32, use_safetensors=True),
            AutoTokenizer.from_pretrained(folder / "text_tokenizer"),
            TokenizerPart.from_pretrained(folder / "visual_tokenizer"),
            DecoderPart.from_pretrained(folder / "decoder"),
            template=cls.load_config(folder)["template"],
        )

    @cached_property
    def codec(self) -> Codec:
        """The visual tokenizer and the decoder."""
        return Codec(self.visual_tokenizer.model, self.decoder.model)

    @cached_property
    def lm(self) -> MultimodalLM:
        """The language model with its grammar."""
        model = self.language_model.eval()
        return MultimodalLM(model, self.text_tokenizer, self.config.template, self.codec.fingerprint)

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Any = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
        **sampling: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw.

        Args:
            prompt: A caption or an instruction, or several.
            image: What the instruction is about: a PIL image or a path, or one for each prompt.
            num_inference_steps: Denoising steps; None: as many as the decoder wants.
            guidance_scale: Of the language model; 1 is none.
            generator: Seeds the pictures; None draws seeds at random.
            output_type: PIL images, or float32 in [0, 1]: NumPy [N, H, W, 3] or torch [N, 3, H, W].
            sampling: temperature, top_k and top_p of ids.

        Returns:
            `.images`, those of the first prompt first; or a tuple of them.

        Raises:
            ValueError: If the template takes no image, there are not as many as prompts, or a setting is out of range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if image is not None:
            given = list(image) if isinstance(image, list | tuple) else [image] * len(prompts)
            prompts = [[each, words] for each, words in zip(given, prompts, strict=True)]
        prompts = [each for each in prompts for _ in range(num_images_per_prompt)]
        seeds = torch.randint(2**31, (len(prompts),), generator=generator).tolist()
        codec, steps = self.codec, {} if num_inference_steps is None else {"num_steps": num_inference_steps}
        settings = {"output": "image", "guidance_scale": guidance_scale, **sampling}
        visual = codec if image is not None else None
        ids = [
            self.lm.generate(each, visual, seed=seed, **settings).ids[0]
            for each, seed in zip(prompts, seeds, strict=True)
        ]
        drawn = codec.decode(torch.stack(ids), seed=seeds, **steps)
        images = _as_type(drawn, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _as_type(drawn: torch.Tensor, output_type: str) -> "torch.Tensor | Any | list[Image]":
    if output_type == "pil":
        from PIL import Image

        return [Image.fromarray(picture) for picture in to_uint8(drawn)]
    scaled = (drawn + 1) / 2
    return scaled if output_type == "pt" else scaled.permute(0, 2, 3, 1).numpy()


def export_diffusers(run: Path, out: Path, tokenizer: Path | None = None) -> str:
    """Write a pipeline folder of a language model and its codec, and say how it is loaded.

    Raises:
        FileNotFoundError: If the run, or the tokenizer whose ids it was trained on, is missing.
    """
    lm, codec = load_pair(run, tokenizer)
    parts = (TokenizerPart(codec.tokenizer), DecoderPart(codec.decoder))
    pipeline = DDTPipeline(lm.model, lm.text_tokenizer, *parts, template=lm.template)
    pipeline.save_pretrained(out)
    (out / f"{LOADER}.py").write_text(LOADER_CODE)
    index = json.loads((out / "model_index.json").read_text())
    index["_class_name"] = [LOADER, DDTPipeline.__name__]
    with writing(out / "model_index.json") as part:
        part.write_text(json.dumps(index, indent=2) + "\n")
    return f'{out} is loaded by: diffusers.DiffusionPipeline.from_pretrained("{out}", trust_remote_code=True)'
