"""DDT in ComfyUI: copy this file into its folder `custom_nodes`; the packages have to be installed in its Python.

Pictures become ids, are changed as ids, and come back; a language model draws from a prompt. Images of ComfyUI are
float32 [B, H, W, 3] in 0..1, ids int64 [B, K] with the finest first.
"""

from pathlib import Path

import torch
from PIL import Image

from ddt_apps.models import load_pair
from ddt_apps.run.devices import pick_device
from ddt_tokenizer import Codec

WIDEST = 2**31 - 1


def to_comfy(images: torch.Tensor) -> torch.Tensor:
    """Turn [B, 3, H, W] in [-1, 1] into ComfyUI's form."""
    return (images.float().clamp(-1, 1) / 2 + 0.5).movedim(1, -1).cpu()


class DDTLoadCodec:
    """Loads a tokenizer and its decoder: a name that comes along, a run, or an id of the Hub."""

    CATEGORY, FUNCTION, RETURN_TYPES = "DDT", "load", ("DDT_CODEC",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"codec": ("STRING", {"default": "ddt-small-64"})}}

    def load(self, codec):
        return (Codec.from_pretrained(codec, pick_device("auto")),)


class DDTLoadModel:
    """Loads a language model of `ddt pretrain` or `ddt sft`, and the codec of its ids."""

    CATEGORY, FUNCTION, RETURN_TYPES = "DDT", "load", ("DDT_MODEL", "DDT_CODEC")

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"run": ("STRING", {"default": "runs/demo/sft"})}}

    def load(self, run):
        return load_pair(Path(run), None)


class DDTEncode:
    """Writes images as ids; they are resized and cropped to the codec's size."""

    CATEGORY, FUNCTION, RETURN_TYPES = "DDT", "encode", ("DDT_IDS",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"codec": ("DDT_CODEC",), "image": ("IMAGE",)}}

    def encode(self, codec, image):
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        return (codec.encode([Image.fromarray(each) for each in pixels]),)


class DDTDecode:
    """Draws ids: all of them, or so many of the coarsest; 0 is all, and for steps what the decoder usually takes."""

    CATEGORY, FUNCTION, RETURN_TYPES = "DDT", "decode", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        whole = {"default": 0, "min": 0, "max": 4096}
        return {
            "required": {"codec": ("DDT_CODEC",), "ids": ("DDT_IDS",)},
            "optional": {"keep_tokens": ("INT", whole), "steps": ("INT", whole)},
        }

    def decode(self, codec, ids, keep_tokens=0, steps=0):
        given = {"keep_tokens": keep_tokens, "num_steps": steps}
        return (to_comfy(codec.decode(ids, **{name: value for name, value in given.items() if value})),)


class DDTSwap:
    """Takes ids `start` to `stop` - 1 from other pictures; 0 is the finest."""

    CATEGORY, FUNCTION, RETURN_TYPES = "DDT", "swap", ("DDT_IDS",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        place = {"default": 0, "min": 0, "max": 4096}
        return {
            "required": {
                "ids": ("DDT_IDS",),
                "others": ("DDT_IDS",),
                "start": ("INT", place),
                "stop": ("INT", {**place, "default": 32}),
            }
        }

    def swap(self, ids, others, start, stop):
        return (torch.cat([ids[:, :start], others.expand_as(ids)[:, start:stop], ids[:, max(start, stop) :]], dim=1),)


class DDTGenerate:
    """Draws a prompt; with an image, and a model of `ddt sft`, the prompt says what to change in it."""

    CATEGORY, FUNCTION, RETURN_TYPES = "DDT", "generate", ("IMAGE", "DDT_IDS")

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "model": ("DDT_MODEL",),
                "codec": ("DDT_CODEC",),
                "prompt": ("STRING", {"multiline": True, "default": "a red fox left of a bell"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": WIDEST}),
                "guidance": ("FLOAT", {"default": 1.5, "min": 0.0, "max": 20.0, "step": 0.1}),
                "temperature": ("FLOAT", {"default": 0.7, "min": 0.0, "max": 2.0, "step": 0.05}),
            },
            "optional": {"ids": ("DDT_IDS",)},
        }

    def generate(self, model, codec, prompt, seed, guidance, temperature, ids=None):
        asked = prompt if ids is None else [ids[0], prompt]
        settings = {"output": "image", "seed": seed, "guidance_scale": guidance, "temperature": temperature}
        drawn = model.generate(asked, codec, **settings)
        return to_comfy(drawn.images), drawn.ids


NODE_CLASS_MAPPINGS = {
    node.__name__: node for node in (DDTLoadCodec, DDTLoadModel, DDTEncode, DDTDecode, DDTSwap, DDTGenerate)
}
NODE_DISPLAY_NAME_MAPPINGS = {name: f"DDT {name.removeprefix('DDT').lower()}" for name in NODE_CLASS_MAPPINGS}
