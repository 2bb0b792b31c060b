"""Published decoders and renderers from elsewhere: loaded, or refused in one line before anything is allocated."""

import copy
import json
import random

import pytest
import torch

from ddt_decoder import DDTDecoder, DDTRenderer, DecoderConfig, FlowConfig, MMDiTConfig

ODD = [None, True, -1, 0, 2.5, 10**6, 10**9, 10**18, 10**40, float("nan"), float("inf"), "8", "", [], [1], {}, {"a": 1}]
SHAPES = [
    {},
    {"start": "haar", "table_side": 4},
    {"token_modulation": "position", "qk_norm": False},
]


def build(shape, **flow):
    torch.manual_seed(0)
    network = MMDiTConfig(**{"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "token_width": 3, **shape})
    config = DecoderConfig(
        image_size=16, codebook_size=9, schedule=(3, 1), network=network, flow=FlowConfig(**flow), num_steps=2
    )
    return DDTDecoder(config).eval()


@pytest.fixture(params=[(shape, renders) for shape in range(len(SHAPES)) for renders in (False, True)])
def model(request):
    shape, renders = request.param
    decoder = build(SHAPES[shape], reweight_gradients=shape == 1)
    return DDTRenderer.from_decoder(decoder).eval() if renders else decoder


def test_what_was_saved_is_what_is_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, ids = type(model).from_pretrained(tmp_path), torch.randint(9, (2, 4))
    assert torch.equal(loaded.decode(ids), model.decode(ids)) and loaded.config == model.config
    buffers = dict(loaded.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())


def test_any_setting_may_be_odd(model, tmp_path):
    """Each setting of config.json replaced by odd values: refused in one line, or loaded."""
    model.save_pretrained(tmp_path)
    whole, rng = json.loads((tmp_path / "config.json").read_text()), random.Random(0)
    paths = [(name,) for name in whole]
    paths += [(group, name) for group in ("network", "flow", "latents") for name in whole[group]]
    for path in paths:
        for odd in rng.sample(ODD, 6):
            changed = copy.deepcopy(whole)
            owner = changed if len(path) == 1 else changed[path[0]]
            owner[path[-1]] = odd
            (tmp_path / "config.json").write_text(json.dumps(changed))
            try:
                loaded = type(model).from_pretrained(tmp_path)
            except ValueError as error:
                assert "\n" not in str(error) and str(tmp_path) in str(error), (path, odd)
            else:
                assert loaded.config.image_size == 16 and loaded.num_tokens <= 65_536


@pytest.mark.parametrize("size", [{"width": 10**6}, {"depth": 900}, {"patch_size": 3000}, {"token_width": 10**7}])
def test_sizes_are_those_of_the_file_before_anything_is_allocated(model, size, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    whole["network"] |= size
    whole["image_size"] = 3000 if "patch_size" in size else 16
    (tmp_path / "config.json").write_text(json.dumps(whole))
    made, original = [], type(model).__init__

    def remembered(self, *args, **kwargs):
        made.append(torch.get_default_device().type)
        original(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "__init__", remembered)
    with pytest.raises(ValueError, match="damaged or incomplete"):
        type(model).from_pretrained(tmp_path)
    assert made == ["meta"]


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, '{"a":' * 100_000])
def test_a_config_of_another_shape_is_refused(model, text, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**80, True, 0.5])
def test_a_seed_that_is_none_is_named(seed):
    decoder, ids = build({}), torch.zeros(1, 4, dtype=torch.long)
    for given in (seed, [seed]):
        with pytest.raises(ValueError, match="seed"):
            decoder.decode(ids, seed=given)
    assert decoder.decode(ids, seed=20261126012345).isfinite().all()
