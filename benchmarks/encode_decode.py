"""Ids from images and images from ids: a small tokenizer on pixels against models of diffusers with as many weights.

pip install diffusers, then: python benchmarks/encode_decode.py [encode] [decode] [steps] [rounds=5] [precision=bf16]
python benchmarks/encode_decode.py size=large   (256 px, patches of 16, 128 ids of 4,096; 23 and 36 million weights)

Random weights, one thread, float32 or bf16 by autocast on both sides. `encode`: 16 images of 64 px to 64 ids of 8,192,
against VQModel and the encoder of AutoencoderTiny (which finds no ids). `decode`: 4 images in one step, against the
decoders of the two. `steps`: 4 images in 25 steps, against SD3Transformer2DModel with the same patches, tokens and
steps of Euler, by a schedule that hides them at the very end and by a uniform one, in which a step computes the tokens
it sees. Printed are parameters and GFLOP an image (`torch.utils.flop_counter`) of each, and the CPU time of the others
over ours: above 1 ours is quicker. Without words all three run, in a minute; size=large, which draws one image in 10
steps, takes five.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderTiny, SD3Transformer2DModel, VQModel
from pairs import settings, take_turns, timed
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddt_decoder import DDTDecoder, DecoderConfig, FlowConfig, MMDiTConfig
from ddt_tokenizer import DDTTokenizer, TokenizerConfig, VectorConfig
from ddt_tokenizer.precision import computing


@dataclass(frozen=True)
class Size:
    """Ours, and the widths at which the others have as many weights."""

    tokenizer: TokenizerConfig
    decoder: DecoderConfig
    encoded: int  # images of a batch
    drawn: int
    steps: int
    vq_encoder: tuple[tuple[int, ...], int]  # channels, layers a block
    vq_decoder: tuple[tuple[int, ...], int]
    tiny_decoder: int  # channels; the encoder is as it is


SMALL = Size(  # on pixels, so that what is timed is the same as in the published table
    TokenizerConfig(quantizer=VectorConfig(codebook_size=8192, rate=0.001)),
    DecoderConfig(
        codebook_size=8192,
        schedule=(64,) + (0,) * 24,
        network=MMDiTConfig(patch_size=8, width=192, depth=4, num_heads=6, token_width=12),
        flow=FlowConfig(time_shift=8.0, full_noise_share=0.7),
    ),
    encoded=16,
    drawn=4,
    steps=25,
    vq_encoder=((32, 64, 64, 128), 1),
    vq_decoder=((64, 64, 96, 192), 2),
    tiny_decoder=128,
)


def large() -> Size:
    """23 million weights to encode, 36 to decode."""
    tokenizer, decoder = SMALL.tokenizer, SMALL.decoder
    shape = {"width": 512, "depth": 4, "num_heads": 8, "patch_size": 16}
    encoder = replace(tokenizer.encoder, **shape, num_tokens=128)
    network = replace(decoder.network, **shape)
    return Size(
        replace(tokenizer, image_size=256, encoder=encoder, quantizer=replace(tokenizer.quantizer, codebook_size=4096)),
        replace(decoder, image_size=256, codebook_size=4096, schedule=(128,) + (0,) * 24, network=network),
        encoded=1,
        drawn=1,
        steps=10,
        vq_encoder=((128, 128, 256, 256, 464), 2),
        vq_decoder=((128, 128, 256, 256, 496), 2),
        tiny_decoder=352,
    )


def vq_model(channels: tuple[int, ...], layers: int, size: Size) -> VQModel:
    quantizer = size.tokenizer.quantizer
    return VQModel(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=layers,
        latent_channels=quantizer.code_width,
        vq_embed_dim=quantizer.code_width,
        num_vq_embeddings=quantizer.codebook_size,
        norm_num_groups=16,
    ).eval()


@dataclass
class Way:
    """What does the work, and the modules that it takes."""

    work: Callable[[], Tensor]
    modules: list[nn.Module]

    @torch.no_grad()
    def described(self, images: int) -> str:
        """Tell parameters and the GFLOP of an image, attention included."""
        million = sum(weight.numel() for module in self.modules for weight in module.parameters()) / 1e6
        for module in self.modules:
            module.requires_grad_(False)  # which the counter would look for gradients of
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused kernels are not counted
            self.work()
        return f"{million:.2f} M parameters, {counter.get_total_flops() / images / 1e9:.3f} GFLOP an image"


def compare(what: str, ways: dict[str, Way], images: int, precision: str, rounds: int) -> None:
    """Print what each way takes, and the ratios of time to the first."""
    print(f"{what}, {images} images, {precision}")
    for name, way in ways.items():
        print(f"  {name}: {way.described(images)}", flush=True)
    take_turns("  time", {name: timed(torch.inference_mode()(way.work)) for name, way in ways.items()}, rounds)


def within(precision: str, network: Callable[..., Any], *inputs: Tensor | bool) -> Any:
    """Call a network of theirs in the precision that ours takes as an attribute."""
    with computing(precision.removeprefix("fp"), torch.device("cpu")):
        return network(*inputs)


def encode(size: Size, precision: str, rounds: int) -> None:
    tokenizer = DDTTokenizer(size.tokenizer).eval()
    tokenizer.precision = precision.removeprefix("fp")
    vq, tiny = vq_model(*size.vq_encoder, size), AutoencoderTiny().eval()
    images = torch.rand(size.encoded, 3, size.tokenizer.image_size, size.tokenizer.image_size) * 2 - 1

    def vq_encodes() -> Tensor:
        return vq.quantize(within(precision, vq.encode, images).latents.float())[2][2]  # searched in float32, as ours

    ways = {
        "ddt": Way(lambda: tokenizer.encode(images), [tokenizer]),
        "VQModel": Way(vq_encodes, [vq.encoder, vq.quant_conv, vq.quantize]),
        "AutoencoderTiny": Way(lambda: within(precision, tiny.encode, images).latents, [tiny.encoder]),
    }
    compare("images to ids", ways, len(images), precision, rounds)


def decode(size: Size, precision: str, rounds: int) -> None:
    decoder, ids = drawing(size, size.decoder.schedule, precision)
    vq = vq_model(*size.vq_decoder, size)
    tiny = AutoencoderTiny(decoder_block_out_channels=(size.tiny_decoder,) * 4).eval()
    images, side = len(ids), size.decoder.image_size
    vq_side, tiny_side = side // 2 ** (len(size.vq_decoder[0]) - 1), side // 8
    vq_ids = torch.randint(size.decoder.codebook_size, (images * vq_side**2,))
    vq_shape = (images, vq_side, vq_side, vq.config.vq_embed_dim)
    latents = torch.randn(images, 4, tiny_side, tiny_side)
    ways = {
        "ddt": Way(lambda: decoder.decode(ids, num_steps=1), [decoder]),
        "VQModel": Way(
            lambda: within(precision, vq.decode, vq.quantize.get_codebook_entry(vq_ids, vq_shape), True).sample,
            [vq.decoder, vq.post_quant_conv, vq.quantize],
        ),
        "AutoencoderTiny": Way(lambda: within(precision, tiny.decode, latents).sample, [tiny.decoder]),
    }
    compare("ids to images in one step", ways, images, precision, rounds)


def drawing(size: Size, schedule: tuple[int, ...], precision: str) -> tuple[DDTDecoder, Tensor]:
    """Our decoder with a schedule, and ids to draw."""
    config = replace(size.decoder, schedule=schedule)
    decoder = DDTDecoder(config).eval()
    decoder.set_codebook(torch.randn(config.codebook_size, config.network.token_width), "")
    decoder.precision = precision.removeprefix("fp")
    return decoder, torch.randint(config.codebook_size, (size.drawn, sum(schedule)))


def steps(size: Size, precision: str, rounds: int) -> None:
    network, tokens = size.decoder.network, sum(size.decoder.schedule)
    (own, ids), (uniform, _) = (drawing(size, part, precision) for part in (size.decoder.schedule, (tokens,)))
    sd3 = SD3Transformer2DModel(
        sample_size=size.decoder.image_size,
        patch_size=network.patch_size,
        in_channels=3,
        out_channels=3,
        num_layers=network.depth,
        num_attention_heads=network.num_heads,
        attention_head_dim=network.width // network.num_heads,
        caption_projection_dim=network.width,
        joint_attention_dim=network.token_width,
        pooled_projection_dim=network.token_width,
        pos_embed_max_size=size.decoder.patch_grid[0],
        qk_norm="rms_norm",
    ).eval()

    def sd3_draws() -> Tensor:
        seen, pooled = own.embed(ids), torch.zeros(len(ids), network.token_width)
        x = torch.randn(len(ids), 3, size.decoder.image_size, size.decoder.image_size)
        times = torch.linspace(1, 0, size.steps + 1)
        for t, following in pairwise(times):
            at = 1000 * t.expand(len(ids))
            x = x + (following - t) * within(precision, sd3, x, seen, pooled, at).sample.float()
        return x.clamp(-1, 1)

    ways = {
        "ddt": Way(lambda: own.decode(ids, num_steps=size.steps), [own]),
        "ddt, uniform schedule": Way(lambda: uniform.decode(ids, num_steps=size.steps), [uniform]),
        "SD3Transformer2DModel": Way(sd3_draws, [sd3]),
    }
    compare(f"ids to images in {size.steps} steps", ways, len(ids), precision, rounds)


PARTS = {"encode": encode, "decode": decode, "steps": steps}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options, parts = settings(size="small", precision="fp32", rounds=5)
    size = {"small": lambda: SMALL, "large": large}[options["size"]]()
    for part in parts or PARTS:
        PARTS[part](size, options["precision"], options["rounds"])


if __name__ == "__main__":
    main()
