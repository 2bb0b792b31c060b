"""Order of ids: what pictures tell, against the truth; either end of the ids; estimates at noise."""

from copy import deepcopy
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from ddt_apps.evaluation import order
from ddt_apps.evaluation.heldout import held_out_scenes, shard_pictures
from ddt_apps.evaluation.page import document
from ddt_apps.evaluation.steps import sharpness, ways_to_draw
from ddt_apps.evaluation.tokens import at_noise, from_finest, locality, patch_changes
from ddt_apps.shards.make import make_scenes
from ddt_data import Judge, render
from ddt_decoder import DDTDecoder, DecoderConfig, MMDiTConfig
from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import to_tensor


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    tokenizer, config = DDTTokenizer(TokenizerConfig.tiny()).eval(), DecoderConfig.tiny()
    network = replace(config.network, width=32, depth=1, num_heads=2)
    decoder = DDTDecoder(replace(config, network=network)).eval()
    torch.nn.init.normal_(decoder.network.patch_out.weight, std=0.2)
    with torch.no_grad():  # codes that differ
        tokenizer.quantizer.codebook.normal_()
    decoder.set_codebook(tokenizer.embed(torch.arange(512)), tokenizer.fingerprint())
    return Codec(tokenizer, decoder)


def test_the_truth_tells_all_and_an_empty_picture_its_background_alone():
    scenes, config = held_out_scenes("tiny", 32, 40, seed=0)
    pictures = np.stack([render(scene.scene, config) for scene in scenes])
    judge = Judge.from_pretrained("a")
    told = order.tells(scenes, pictures, judge.read(pictures, 32))
    assert all(told[name] > 90 for name in order.TELLS)
    empty = np.stack([np.broadcast_to(picture[:1, :1], picture.shape) for picture in pictures])
    blank = order.tells(scenes, empty, judge.read(empty, 32))
    assert blank["background"] == told["background"] == 100
    assert max(blank[name] for name in ("place", "colour", "noun")) < 10
    moved = order.tells(scenes, pictures[::-1], judge.read(pictures[::-1], 32))
    assert moved["noun"] < 40


def test_all_ids_are_the_same_from_either_end(codec):
    scenes, config = held_out_scenes("tiny", 32, 6, seed=0)
    images = to_tensor([render(scene.scene, config) for scene in scenes])
    ids = codec.encode(images)
    assert from_finest(codec, ids, 16).shape == images.shape
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 512
    assert torch.equal(from_finest(codec, ids, 5), from_finest(codec, other, 5))
    one = torch.tensor(1.0)
    assert torch.equal(at_noise(codec, images, ids, one, "all"), at_noise(codec, images, ids, one, "k(t)"))
    assert torch.equal(at_noise(codec, images, ids, 0.5, "none"), at_noise(codec, images, other, 0.5, "none"))
    assert not torch.equal(at_noise(codec, images, ids, 0.5, "all"), at_noise(codec, images, other, 0.5, "all"))
    share = locality(patch_changes(codec, ids))
    assert share.shape == (16,)
    used = share[~share.isnan()]
    assert len(used) and used.min() > 1 / 16 - 1e-6 and used.max() < 1 + 1e-6


def test_an_evaluation_has_figures_for_every_number_of_ids(codec):
    scores, drawn = order.evaluate(codec, order.Settings(level="tiny", count=12))
    figures = scores.scores
    assert list(figures["coarsest"]) == list(figures["finest"]) == ["1", "2", "4", "8", "16"]
    assert figures["coarsest"]["16"] == figures["finest"]["16"]
    assert all(len(figures[name]) == 8 for name in ("locality", "change", "codes", "bits"))
    assert list(figures["steps"]) == [
        "not quantized",
        "1 step",
        *(f"{count} steps{how}" for count in (8, 25) for how in ("", ", all ids", ", all ids, guided")),
    ]
    assert list(figures["noise"]) == ["0.1", "0.3", "0.5", "0.7", "0.9"]
    assert "from coarse to fine" in document(scores, order.page(scores, drawn), "").lower()
    again, _ = order.evaluate(codec, order.Settings(level="tiny", count=12))
    assert again.scores == figures and again.protocol_id == scores.protocol_id
    with pytest.raises(ValueError, match="ddt train-tokenizer"):
        order.evaluate(object(), order.Settings(level="tiny", count=12))


def test_pictures_of_a_folder_are_measured_without_words(codec, tmp_path):
    make_scenes(tmp_path / "pictures", 10, level="tiny")
    settings = order.Settings(level="tiny", count=8, data=str(tmp_path / "pictures"))
    scores, drawn = order.evaluate(codec, settings)
    figures = scores.scores
    assert scores.protocol["count"] == 8 and "pictures, evenly spread, shards" in scores.protocol["data"]
    assert set(figures["coarsest"]["4"]) == {"psnr", "psnr_standard_error", "explained"}
    assert "overall" not in figures["steps"]["1 step"] and figures["steps"]["1 step"]["psnr"] == figures["psnr"]
    assert "picture 0" in document(scores, order.page(scores, drawn), "")
    some, _ = shard_pictures(settings.data, 32, 5)
    every, _ = shard_pictures(settings.data, 32, 99)
    assert len(every) == 10 and (some == every[::2]).all()  # from all over the folder, which may be sorted
    with pytest.raises(ValueError, match="have 32 px, the tokenizer takes 64"):
        shard_pictures(settings.data, 64, 8)


def test_another_tokenizer_is_measured_alike_and_stands_beside(codec, tmp_path):
    twin = deepcopy(codec)
    torch.nn.init.normal_(twin.decoder.network.patch_out.weight, std=0.2)
    twin.save_pretrained(tmp_path / "twin")
    settings = order.Settings(level="tiny", count=12, beside=str(tmp_path / "twin"))
    scores, drawn = order.evaluate(codec, settings)
    alone, _ = order.evaluate(codec, order.Settings(level="tiny", count=12))
    its_own, _ = order.evaluate(twin, order.Settings(level="tiny", count=12))
    assert alone.protocol_id == scores.protocol_id and alone.scores == scores.scores != its_own.scores
    assert {name: scores.controls["beside"][name] for name in its_own.scores} == its_own.scores
    page = document(scores, order.page(scores, drawn), "")
    assert f"<th>{tmp_path / 'twin'}: ids</th>" in page and "<th>ids</th>" in page


def test_pictures_of_any_size_are_measured():
    torch.manual_seed(0)
    config = replace(TokenizerConfig.tiny(), image_size=36, encoder=EncoderConfig(patch_size=4, num_tokens=16))
    network = MMDiTConfig(patch_size=4, width=32, depth=1, num_heads=2, token_width=16)
    tokenizer, decoder = DDTTokenizer(config), DDTDecoder(replace(DecoderConfig.tiny(), image_size=36, network=network))
    decoder.set_codebook(tokenizer.embed(torch.arange(512)), tokenizer.fingerprint())
    scores, _ = order.evaluate(Codec(tokenizer, decoder), order.Settings(level="tiny", count=4))
    assert scores.scores["steps"]["1 step"]["distance"] > 0


def test_sharpness_is_lost_by_blurring_and_ways_to_draw_differ(codec):
    scenes, config = held_out_scenes("tiny", 32, 6, seed=0)
    images = to_tensor([render(scene.scene, config) for scene in scenes])
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    assert sharpness(blurred) < 0.2 * sharpness(images) and sharpness(images * 0.5) < sharpness(images)
    ways = ways_to_draw(codec, images, codec.encode(images))
    drawn = {way: draw(slice(0, 6)) for way, draw in ways.items()}
    assert torch.equal(drawn["1 step"], codec.decode(codec.encode(images), num_steps=1))
    assert not torch.equal(drawn["1 step"], drawn["8 steps"])
    assert not torch.equal(drawn["1 step"], drawn["not quantized"])
    different = [drawn[f"8 steps{how}"] for how in ("", ", all ids", ", all ids, guided")]
    assert not any(torch.equal(one, other) for one, other in combinations(different, 2))
