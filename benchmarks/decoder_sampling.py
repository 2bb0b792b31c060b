"""Sampling with the tokens that each step sees, against computing all tokens at every step behind a mask.

python benchmarks/decoder_sampling.py [rounds=5] [batch=2] [precision=bf16]

25 steps of a decoder of random weights with 128 tokens, on one thread in float32 or bf16: with the uniform schedule,
with guidance, with Selftok's schedule, and with four times the patches. Printed are the CPU time of the masked way over
ours, the tokens that our steps see on average, and the largest difference of the images. Two minutes.
"""

import torch
from pairs import settings, take_turns, timed
from torch import Tensor

from ddt_decoder import DDTDecoder, DecoderConfig, FlowConfig, MMDiTConfig
from ddt_decoder.flow import denoise
from ddt_decoder.precision import computing

NUM_STEPS = 25
NUM_TOKENS = 128


def build(image_size: int, schedule: tuple[int, ...]) -> DDTDecoder:
    """Build a decoder of random weights, patches of 8 pixels."""
    torch.manual_seed(0)
    network = MMDiTConfig(patch_size=8, width=256, depth=6, num_heads=8, token_width=16)
    flow = FlowConfig(network_output="velocity", prediction="velocity")
    config = DecoderConfig(image_size=image_size, codebook_size=512, schedule=schedule, network=network, flow=flow)
    decoder = DDTDecoder(config).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    decoder.set_codebook(torch.randn(512, 16), "")
    return decoder


def decode_with_a_mask(decoder: DDTDecoder, ids: Tensor, guidance_scale: float) -> Tensor:
    """Draw as `DDTDecoder.decode` does, with every token computed and the unseen ones masked."""
    tokens = decoder.embed(ids)
    shape = (3, decoder.config.image_size, decoder.config.image_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).expand(len(ids), *shape)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times = t.expand(len(x))
        v = decoder.velocity(x, times, tokens)
        if guidance_scale == 1.0:
            return v
        blind = decoder.velocity(x, times, tokens, keep_tokens=0)
        return blind + guidance_scale * (v - blind)

    with torch.inference_mode(), computing(decoder.precision, ids.device):
        *_, image = denoise(velocity, noise, NUM_STEPS)
    return image.clamp(-1, 1)


def main() -> None:
    torch.set_num_threads(1)
    options, _ = settings(rounds=5, batch=2, precision="fp32")
    uniform, selftok = (NUM_TOKENS,), (48, 46, 18, 12, 4)
    for image_size, schedule, scale in (
        (64, uniform, 1.0),
        (64, uniform, 3.0),
        (64, selftok, 1.0),
        (128, uniform, 1.0),
    ):
        decoder = build(image_size, schedule)
        decoder.precision = options["precision"].removeprefix("fp")
        ids = torch.randint(512, (options["batch"], NUM_TOKENS))

        def ours() -> Tensor:
            return decoder.decode(ids, NUM_STEPS, guidance_scale=scale)  # noqa: B023

        def masked() -> Tensor:
            return decode_with_a_mask(decoder, ids, scale)  # noqa: B023

        grid = torch.linspace(1, 0, NUM_STEPS + 1)[:-1]
        seen = decoder.schedule.visible_count(grid).float().mean()
        what = f"schedule {schedule}, {(image_size // 8) ** 2} patches, guidance {scale}"
        take_turns(what, {"what is seen": timed(ours), "all behind a mask": timed(masked)}, options["rounds"])
        print(f"  {seen:.0f} tokens seen on average, largest difference {(ours() - masked()).abs().max():.1e}")


if __name__ == "__main__":
    main()
