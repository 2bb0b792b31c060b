"""Presets: the published shapes, counted on the meta device against the layer list of the sources."""

import dataclasses
import json

import pytest
import torch

from ddt_decoder import DDTDecoder, DDTRenderer, DecoderConfig


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def layer_list_size(d, depth, patch_values, token_width, position_embedders=0, normed_head=0):
    """Sum the layers of an SD3 transformer whose text stream reads tokens (ddt-spec 3.5)."""

    def linear(inputs, outputs):
        return inputs * outputs + outputs

    stream = linear(d, 6 * d) + linear(d, 3 * d) + linear(d, d) + linear(d, 4 * d) + linear(4 * d, d)
    last_tokens = linear(d, 2 * d) + linear(d, 3 * d)
    embedder = linear(256, d) + linear(d, d)
    ends = linear(patch_values, d) + linear(token_width, d) + embedder + linear(d, 2 * d) + linear(d, patch_values)
    norms = depth * 4 * normed_head  # of queries and keys of both streams
    return (2 * depth - 1) * stream + last_tokens + ends + position_embedders * embedder + norms


@pytest.mark.parametrize(
    ("preset", "num_tokens", "codebook_size", "position_embedders"),
    [("ddt_480", 480, 65_536, 0), ("selftok_512", 512, 32_768, 23), ("selftok_1024", 1024, 32_768, 23)],
)
def test_big_presets_have_the_published_size(preset, num_tokens, codebook_size, position_embedders):
    config = getattr(DecoderConfig, preset)()
    with torch.device("meta"):
        decoder = DDTDecoder(config)
    assert size(decoder) == layer_list_size(1536, 24, 2 * 2 * 16, 16, position_embedders)
    assert decoder.num_tokens == num_tokens and decoder.codebook.shape == (codebook_size, 16)
    if preset == "selftok_512":
        assert round(size(decoder) / 1e9, 2) == 2.08
        with torch.device("meta"):
            renderer = DDTRenderer(config)
        assert size(renderer) == size(decoder) - (64 * 1536 + 1536) + 256 * 1536 + 1536


def test_small_presets_train():
    tiny, small = DecoderConfig.tiny(), DecoderConfig.small()
    for config, width, patch, scales in ((tiny, 160, 8 * 8 * 3, 0), (small, 192, 2 * 2 * 8, 64 * 8 * 8)):
        token_width = config.network.token_width
        decoder = DDTDecoder(config)
        assert size(decoder) == layer_list_size(width, 4, patch, token_width, normed_head=32) + scales
        tokens = torch.randn(2, decoder.num_tokens, token_width)
        side = config.image_size // config.latents.downscale
        latents = torch.randn(2, config.latents.channels, side, side)
        assert decoder.loss(latents, tokens).isfinite()


@pytest.mark.parametrize("preset", ["tiny", "small", "ddt_480", "selftok_512", "selftok_1024"])
def test_a_config_survives_json(preset):
    config = getattr(DecoderConfig, preset)()
    assert DecoderConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_folder_of_the_first_release_still_loads(tmp_path):
    config = DecoderConfig.tiny()
    DDTDecoder(config).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("latents", "logit_normal_schedule", "num_steps"):
        del values[name]
    for name in ("qk_norm", "token_modulation", "tokens_see_patches", "open_gates", "table_side"):
        del values["network"][name]
    for name in ("network_output", "logit_normal", "reweight_gradients"):
        del values["flow"][name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    loaded = DDTDecoder.from_pretrained(tmp_path).config
    assert loaded == config and loaded.usual_steps == 1


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="logit_normal_schedule"):
        DecoderConfig(schedule=(4, 4), logit_normal_schedule=(0.0, 1.0))
    with pytest.raises(ValueError, match="table_side"):
        config = DecoderConfig()
        dataclasses.replace(config, network=dataclasses.replace(config.network, table_side=4))
