"""Precision of inference: in bf16 the network multiplies, and nothing else."""

import pytest
import torch

from ddt_decoder import DDTDecoder, DDTRenderer, DecoderConfig, FlowConfig, MMDiTConfig


def make(kind="decoder", output="x0"):
    torch.manual_seed(0)
    network = MMDiTConfig(patch_size=4, width=32, depth=2, num_heads=2, token_width=6)
    flow = FlowConfig(time_shift=2.0, network_output=output)
    decoder = DDTDecoder(DecoderConfig(image_size=16, codebook_size=32, schedule=(5, 3), network=network, flow=flow))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    decoder.set_codebook(torch.randn(32, 6), "abc")
    return (decoder if kind == "decoder" else DDTRenderer.from_decoder(decoder)).eval()


CALLS = [
    ("decoder", "x0", {"num_steps": 1}),
    ("decoder", "x0", {"num_steps": 6, "guidance_scale": 1.5}),
    ("decoder", "velocity", {"num_steps": 4, "sampler": "heun"}),
    ("decoder", "x0", {"num_steps": 4, "sampler": "ddpm", "keep_tokens": 3}),
    ("renderer", "x0", {}),
]


@pytest.mark.parametrize(("kind", "output", "settings"), CALLS)
def test_images_are_nearly_the_same_and_all_but_the_network_is_float32(kind, output, settings, monkeypatch):
    model, ids = make(kind, output), torch.randint(32, (4, 8), generator=torch.Generator().manual_seed(0))
    exact, inside, outside, states = model.decode(ids, **settings), set(), set(), set()
    model.network.patch_out.register_forward_hook(lambda *call: inside.add(call[2].dtype))
    model.network.register_forward_pre_hook(lambda _, inputs: states.add(inputs[0].dtype))
    decode = model.latent_space.decode

    def noted(latents):
        outside.add((latents.dtype, torch.is_autocast_enabled("cpu")))
        return decode(latents)

    monkeypatch.setattr(model.latent_space, "decode", noted)
    model.precision = "bf16"
    drawn = model.decode(ids, **settings)
    assert inside == {torch.bfloat16} and outside == {(torch.float32, False)}
    assert states == ({torch.float32} if kind == "decoder" else set())  # what is denoised; a renderer has none
    assert drawn.dtype == torch.float32 and not torch.equal(drawn, exact)
    assert (drawn - exact).abs().mean() < 0.02 < exact.abs().mean()  # 0.02 is 2.5 of 255
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    model.precision = "32"
    assert torch.equal(model.decode(ids, **settings), exact)


@pytest.mark.parametrize("kind", ["decoder", "renderer"])
def test_no_ids_give_no_images_of_the_same_kind(kind):
    model = make(kind)
    model.precision = "bf16"
    empty = model.decode(torch.zeros(0, 8, dtype=torch.long))
    assert empty.shape == (0, 3, 16, 16) and empty.dtype == torch.float32


def test_it_is_said_where_a_folder_is_opened(tmp_path):
    make().save_pretrained(tmp_path)
    ids = torch.arange(8)[None]
    loaded, exact = DDTDecoder.from_pretrained(tmp_path, precision="bf16"), DDTDecoder.from_pretrained(tmp_path)
    assert not torch.equal(loaded.decode(ids), exact.decode(ids)) and torch.equal(exact.decode(ids), make().decode(ids))
    with pytest.raises(ValueError, match=r"precision \('fp8'\) must be 32 or bf16"):
        DDTDecoder.from_pretrained(tmp_path, precision="fp8")
