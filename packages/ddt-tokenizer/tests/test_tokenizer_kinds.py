"""Kinds of quantizer: one protocol, sizes that follow, fingerprints and checkpoints from when they had one config."""

import json
from dataclasses import asdict, replace
from typing import get_args

import lightning
import pytest
import torch
from torch import nn

from ddt_tokenizer import (
    BinaryConfig,
    DDTTokenizer,
    EncoderConfig,
    Quantizer,
    QuantizerConfig,
    ScalarConfig,
    TokenizerConfig,
    VectorConfig,
)
from ddt_tokenizer.callbacks import HealthMonitor
from ddt_tokenizer.optimizer import OptimizerConfig
from ddt_tokenizer.quantizers.kinds import AnyQuantizer, read_settings
from ddt_tokenizer.training import TokenizerTraining, TrainingConfig

ENCODER = EncoderConfig(width=32, depth=1, num_heads=2, num_tokens=4)
USUAL = (
    '"encoder": {"channels": 3, "depth": 1, "mlp_ratio": 4.0, "num_heads": 2, "num_tokens": 4, "patch_size": 8, '
    '"width": 32}, "image_size": 16, "quantizer": '
)
# What the code of 0.1.0 and its successor, with one config for all kinds, made of the same settings.
QUANTIZERS = {
    "vq": (
        VectorConfig(
            codebook_size=16,
            code_width=4,
            decay=0.9,
            commitment=0.5,
            dead_share=0.1,
            diversity=0.5,
            replacement="random",
            revived_share=0.5,
            rate=0.01,
        ),
        '{"code_width": 4, "codebook_size": 16, "commitment": 0.5, "dead_share": 0.1, "decay": 0.9, "diversity": 0.5, '
        '"rate": 0.01, "replacement": "random", "revived_share": 0.5}',
        "91ab918799a50893",
    ),
    "fsq": (
        ScalarConfig(levels=(5, 4, 3)),
        '{"code_width": 3, "codebook_size": 60, "commitment": 1.0, "dead_share": 0.2, "decay": 0.99, "kind": "fsq", '
        '"levels": [5, 4, 3]}',
        "5e19055549e2023d",
    ),
    "lfq": (
        BinaryConfig(code_width=4),
        '{"code_width": 4, "codebook_size": 16, "commitment": 1.0, "dead_share": 0.2, "decay": 0.99, "kind": "lfq"}',
        "7b6d7f279a3dd28b",
    ),
    "lfq, entropy": (
        BinaryConfig(code_width=4, commitment=0.25, diversity=0.1),
        '{"code_width": 4, "codebook_size": 16, "commitment": 0.25, "dead_share": 0.2, "decay": 0.99, '
        '"diversity": 0.1, "kind": "lfq"}',
        "536b34c466ecc9a9",
    ),
}
SMALL_AT_PLACES = TokenizerConfig(  # the preset "small" until 2026-11-26
    encoder=EncoderConfig(start="grid"), quantizer=VectorConfig(codebook_size=8192, rate=0.001)
)
PRESETS = {
    "tiny": (
        '{"encoder": {"channels": 3, "depth": 3, "mlp_ratio": 4.0, "num_heads": 4, "num_tokens": 16, "patch_size": 8, '
        '"width": 128}, "image_size": 32, "quantizer": {"code_width": 16, "codebook_size": 512, "commitment": 1.0, '
        '"dead_share": 0.2, "decay": 0.99}}'
    ),
    "small": (
        '{"encoder": {"channels": 8, "depth": 3, "mlp_ratio": 4.0, "num_heads": 4, "num_tokens": 64, "patch_size": 2, '
        '"start": "haar", "width": 128}, "image_size": 64, "latents": {"channels": 8, "downscale": 4}, '
        '"quantizer": {"code_width": 12, "codebook_size": 16384, "commitment": 1.0, "dead_share": 0.05, "decay": 0.99, '
        '"rate": 0.001}}'
    ),
    "small at places": (
        '{"encoder": {"channels": 3, "depth": 3, "mlp_ratio": 4.0, "num_heads": 4, "num_tokens": 64, "patch_size": 8, '
        '"start_grid": 8, "width": 128}, "image_size": 64, "quantizer": {"code_width": 12, "codebook_size": 8192, '
        '"commitment": 1.0, "dead_share": 0.2, "decay": 0.99, "rate": 0.001}}'
    ),
    "ddt_480": (
        '{"encoder": {"affine_norms": false, "channels": 16, "depth": 24, "final_norm": false, "mlp_ratio": 4.0, '
        '"num_heads": 8, "num_tokens": 480, "patch_size": 2, "position_table": 64, "qk_norm": false, '
        '"query_position": "sincos", "width": 256}, "image_size": 256, "latents": {"channels": 16, "downscale": 8, '
        '"scale": 1.5305, "shift": 0.0609}, "quantizer": {"code_width": 16, "codebook_size": 65536, "commitment": 1.0, '
        '"dead_share": 0.2, "decay": 0.99, "replacement": "random", "revived_share": 0.2}}'
    ),
    "selftok_512": (
        '{"encoder": {"affine_norms": false, "attention": "one_way", "channels": 16, "depth": 16, "final_norm": false, '
        '"image_heads": 4, "image_width": 64, "mlp_ratio": 4.0, "num_heads": 8, "num_tokens": 512, "patch_size": 2, '
        '"position_table": 64, "qk_norm": false, "query_position": "adaln", "width": 512}, "image_size": 256, '
        '"latents": {"channels": 16, "downscale": 8, "scale": 1.5305, "shift": 0.0609}, '
        '"quantizer": {"code_width": 16, "codebook_size": 32768, "commitment": 1.0, "dead_share": 0.2, "decay": 0.99, '
        '"diversity": 1.0, "replacement": "position", "revived_share": 0.2}}'
    ),
}


def build(config):
    """A tokenizer whose weights are sines of their index, so that it is the same everywhere."""
    tokenizer = DDTTokenizer(TokenizerConfig(image_size=16, encoder=ENCODER, quantizer=config)).eval()
    with torch.no_grad():
        for i, (_, tensor) in enumerate(sorted(tokenizer.state_dict().items())):
            waves = (torch.arange(tensor.numel(), dtype=torch.float64) * (1 + 0.37 * i)).sin()
            tensor.copy_(waves.view(tensor.shape))
    return tokenizer


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_identity_that_they_always_had(name):
    config = SMALL_AT_PLACES if name == "small at places" else getattr(TokenizerConfig, name)()
    assert json.dumps(config.identity(), sort_keys=True) == PRESETS[name]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_fingerprints_do_not_move(name):
    config, identity, fingerprint = QUANTIZERS[name]
    tokenizer = build(config)
    assert json.dumps(tokenizer.config.identity(), sort_keys=True) == f"{{{USUAL}{identity}}}"
    assert tokenizer.fingerprint() == fingerprint


@pytest.mark.parametrize("name", QUANTIZERS)
def test_checkpoints_with_the_settings_of_all_kinds_load(name, tmp_path):
    config, _, fingerprint = QUANTIZERS[name]
    tokenizer = build(config)
    tokenizer.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    everything = {**asdict(VectorConfig()), "levels": [], **written["quantizer"]}
    (tmp_path / "config.json").write_text(json.dumps(written | {"quantizer": everything}))
    loaded = DDTTokenizer.from_pretrained(tmp_path)
    assert loaded.config == tokenizer.config and loaded.fingerprint() == fingerprint
    del everything["kind"]
    (tmp_path / "config.json").write_text(json.dumps(written | {"quantizer": everything}))
    if config.kind == "vq":  # as checkpoints from when there was no other
        assert DDTTokenizer.from_pretrained(tmp_path).config == tokenizer.config
    (tmp_path / "config.json").write_text(json.dumps(written | {"quantizer": everything | {"codes": 3}}))
    with pytest.raises(ValueError, match=r"config\.json in .* is damaged .*codes"):
        DDTTokenizer.from_pretrained(tmp_path)


def test_sizes_follow_from_other_settings():
    scalar, binary = ScalarConfig(levels=[8, 5, 5, 5]), BinaryConfig(code_width=6)
    assert (scalar.codebook_size, scalar.code_width, scalar.levels) == (1000, 4, (8, 5, 5, 5))
    assert (binary.codebook_size, replace(binary, code_width=7).codebook_size) == (64, 128)
    with pytest.raises(TypeError, match="codebook_size"):
        ScalarConfig(levels=(8, 5), codebook_size=40)
    with pytest.raises(ValueError, match="kind=lfq"):
        ScalarConfig(levels=(2, 4))
    with pytest.raises(ValueError, match=r"levels \(\)"):
        ScalarConfig()
    with pytest.raises(TypeError, match="rate"):
        BinaryConfig(rate=0.1)


def test_kinds_are_named():
    with pytest.raises(ValueError, match=r"kind \('FSQ'\) must be vq or fsq or lfq"):
        read_settings(kind="FSQ")
    with pytest.raises(ValueError, match=r"kind \('fsq'\) must be vq"):
        VectorConfig(kind="fsq")
    assert QuantizerConfig is VectorConfig  # its name in 0.1.0
    kinds = [config.kind for config in get_args(AnyQuantizer)]
    assert len(set(kinds)) == len(kinds) and set(kinds) == {config.kind for config, *_ in QUANTIZERS.values()}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_kind_is_a_quantizer(name):
    config = QUANTIZERS[name][0]
    quantizer = config.build(width=32, num_tokens=4)
    assert isinstance(quantizer, nn.Module) and isinstance(quantizer, Quantizer) and quantizer.config == config
    assert set(quantizer.memories) <= {key for key, _ in quantizer.named_buffers()} | {"histogram"}
    vectors, ids = torch.randn(2, 4, 32), torch.arange(config.codebook_size)
    assert quantizer.codebook.shape == (config.codebook_size, config.code_width)
    assert torch.equal(quantizer.continuous(vectors), quantizer.normalise(quantizer.to_code_space(vectors)))
    assert quantizer.embed(ids).shape == (config.codebook_size, config.code_width)


class Decoder(nn.Module):
    def __init__(self, code_width):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4 * code_width, 768)])

    def loss(self, latents, tokens):
        return (self.blocks[0](tokens.flatten(1)).view_as(latents) - latents).square().mean()


@pytest.mark.parametrize("freeze", ["none", "encoder", "codebook", "tokenizer"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_kind_is_trained_frozen_and_watched(name, freeze, tmp_path):
    config = QUANTIZERS[name][0]
    tokenizer = build(config).train()
    training = TrainingConfig(continuous_steps=0, optimizer=OptimizerConfig(steps=2), freeze=freeze)
    module = TokenizerTraining(tokenizer, Decoder(config.code_width), training)
    monitor = HealthMonitor(tmp_path / "health.json", every=1)
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    trainer.fit(module, torch.utils.data.DataLoader(list(torch.rand(2, 4, 3, 16, 16)), batch_size=None))
    assert json.loads((tmp_path / "health.json").read_text())["revived"] == tokenizer.quantizer.revived
    held = [p.requires_grad for p in tokenizer.quantizer.project.parameters()]
    assert all(held) == (freeze in ("none", "codebook"))
