"""Starting from Stable Diffusion 3, against diffusers' model at random toy weights."""

import logging
import sys

import pytest
import torch
from diffusers import SD3Transformer2DModel

from ddt_decoder import DDTDecoder, DecoderConfig, FlowConfig, LatentConfig, MMDiTConfig

SHAPE = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3}
SHAPE |= {"attention_head_dim": 8, "num_attention_heads": 4, "pos_embed_max_size": 12}
SHAPE |= {"joint_attention_dim": 10, "caption_projection_dim": 32, "pooled_projection_dim": 6}


def sd3(**changes):
    torch.manual_seed(0)
    model = SD3Transformer2DModel(**{**SHAPE, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.pos_embed.pos_embed.normal_()  # a stored table need not be the one that we would compute
    return model.eval()


def config(modulation="position", qk_norm=False, **changes):
    network = {"channels": 4, "patch_size": 2, "width": 32, "depth": 3, "num_heads": 4, "token_width": 5}
    network |= {"qk_norm": qk_norm, "token_modulation": modulation, "open_gates": False, "table_side": 12}
    return DecoderConfig(
        image_size=8,
        codebook_size=7,
        schedule=(6,),
        network=MMDiTConfig(**{**network, **changes}),
        flow=FlowConfig(network_output="velocity", prediction="velocity"),
        latents=LatentConfig(channels=4),
    )


@pytest.mark.parametrize(("qk_norm", "modulation"), [(None, "position"), (None, "time"), ("rms_norm", "position")])
def test_with_all_tokens_hidden_it_is_sd3_without_text(tmp_path, qk_norm, modulation):
    model = sd3(qk_norm=qk_norm)
    model.save_pretrained(tmp_path)
    decoder = DDTDecoder.from_sd3(tmp_path, config(modulation, qk_norm is not None)).eval()
    # The pooled text vector is added to the time embedding; without its last layer it adds nothing.
    torch.nn.init.zeros_(model.time_text_embed.text_embedder.linear_2.weight)
    torch.nn.init.zeros_(model.time_text_embed.text_embedder.linear_2.bias)
    for height, width in ((8, 8), (12, 20)):
        x, t = torch.randn(3, 4, height, width), torch.tensor([0.1, 0.6, 1.0])
        with torch.inference_mode():
            wanted = model(x, torch.zeros(3, 0, 10), torch.randn(3, 6), t * 1000).sample
            ours = decoder.velocity(x, t, torch.randn(3, 6, 5), keep_tokens=0)
        assert torch.allclose(ours, wanted, atol=1e-4)
        assert wanted.abs().mean() > 0.1


def test_without_diffusers_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"needs diffusers; install ddt-decoder\[vae\]"):
        DDTDecoder.from_sd3(tmp_path, config())
    with pytest.raises(ValueError, match=r"needs diffusers; install this package with its extra \[vae\]"):
        LatentConfig.from_vae(str(tmp_path))


def test_of_a_hub_id_the_subfolder_is_split_off(monkeypatch):
    asked = []

    def from_hub(name, subfolder, use_safetensors, output_loading_info):
        asked.append((name, subfolder, use_safetensors))
        return sd3(), {"missing_keys": []}

    monkeypatch.setattr(SD3Transformer2DModel, "from_pretrained", from_hub)
    DDTDecoder.from_sd3("owner/name/transformer", config())
    assert asked == [("owner/name", "transformer", True)]


def test_what_is_not_filled_is_the_token_stream_and_is_logged(tmp_path, caplog):
    sd3().save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "ddt_decoder"):
        decoder = DDTDecoder.from_sd3(tmp_path, config())
    named = set(caplog.messages[-1].removeprefix("not filled from SD3: ").split(", "))
    fresh = {name for name, _ in DDTDecoder(config()).network.named_parameters()}
    assert named < fresh
    for name in named:
        assert name.startswith("token_in.") or ".position_in." in name or ".1." in name.split(".", 2)[2], name
    assert {"token_in.weight", "blocks.0.attention.qkv.1.weight", "blocks.2.modulation.1.bias"} < named
    slow = {id(parameter) for parameter in decoder.image_parameters()}
    names = {name for name, parameter in decoder.network.named_parameters() if id(parameter) in slow}
    rest = ("time_in.0.weight", "time_in.2.bias", "final_modulation.weight", "patch_out.weight", "token_in.bias")
    assert names and not names & named and not names & set(rest)


@pytest.mark.parametrize(
    ("model", "network", "named"),
    [
        ({}, {"width": 64}, "patch_in.weight"),
        ({}, {"depth": 2}, "blocks.2"),
        ({}, {"depth": 4}, "blocks.3"),
        ({"qk_norm": "rms_norm"}, {}, "q_norm.0.weight"),
        ({}, {"qk_norm": True}, "q_norm.0.weight"),
        ({}, {"table_side": None}, "patch_table"),
        ({"qk_norm": None, "dual_attention_layers": (0,)}, {}, "attn2"),
    ],
)
def test_another_shape_is_refused_by_name(tmp_path, model, network, named):
    sd3(**model).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=named):
        DDTDecoder.from_sd3(tmp_path, config(**network))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        DDTDecoder.from_sd3(tmp_path / "absent", config())
