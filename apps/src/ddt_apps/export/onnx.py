"""ddt export onnx: a codec for onnxruntime, compared with itself.

Shape letters: B batch, K tokens.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

from ddt_apps.models import load_renderer_run
from ddt_decoder.onnx_export import export_onnx as export_drawer
from ddt_tokenizer.codec import Codec, run_of
from ddt_tokenizer.onnx_export import export_onnx as export_tokenizer

PICTURES = 6  # that both sides read and draw, to be compared


def export_onnx(run: Path, out: Path, vae: str | None = None) -> str:
    """Write `encoder.onnx`, and `renderer.onnx` or `decoder.onnx`, and say how near they are to the model.

    Raises:
        FileNotFoundError: If there is no such finished run.
        ValueError: If the extra `export` is missing, or a file does not give what the model does.
    """
    if find_spec("onnxruntime") is None:
        raise ValueError("ONNX files are written and compared with: pip install onnxscript onnxruntime (extra export)")
    renders = (run_of(run) / "renderer" / "config.json").is_file()
    codec = load_renderer_run(run, vae=vae) if renders else Codec.from_pretrained(run, vae=vae)
    drawn = out / ("renderer.onnx" if renders else "decoder.onnx")
    export_tokenizer(codec.tokenizer, out / "encoder.onnx")
    export_drawer(codec.renderer or codec.decoder, drawn)
    said = _compared(codec, out / "encoder.onnx", drawn)
    if not renders and codec.decoder.config.usual_steps != 1:
        steps = codec.decoder.config.usual_steps
        said += f"\nits one step is blurred: this decoder takes {steps}; export a renderer of it: ddt train-renderer"
    return said


def _compared(codec: Codec, encoder: Path, drawer: Path) -> str:
    import onnxruntime

    def run(file: Path, **inputs: torch.Tensor) -> torch.Tensor:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(output)

    size, generator = codec.image_size, torch.Generator().manual_seed(0)
    images = torch.rand(PICTURES, 3, size, size, generator=generator) * 2 - 1
    ids = codec.encode(images)
    same = (run(encoder, images=images) == ids).float().mean().item()
    inputs = {"ids": ids, "keep_tokens": torch.full((PICTURES,), codec.num_tokens)}
    if codec.renderer is None:
        side = size // codec.decoder.config.latents.downscale
        shape, seeds = (codec.decoder.config.network.channels, side, side), range(PICTURES)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        inputs["noise"] = torch.stack(noise)
        wanted = codec.decoder.decode(ids, num_steps=1, seed=seeds)
    else:
        wanted = codec.renderer.decode(ids)
    error = (run(drawer, **inputs) - wanted).abs().max().item()
    if same < 0.99 or error > 1e-3:
        raise ValueError(f"the files in '{encoder.parent}' give {same:.0%} of the ids, images off by {error:.1e}")
    return (
        f"{encoder} writes {same:.1%} of the ids of the model, {drawer} its images to {error:.0e}, on random pictures"
    )
