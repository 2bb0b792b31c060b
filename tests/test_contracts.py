"""What crosses the borders between packages: ids, vectors, order, fingerprints, protocols."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import ddt_data
import ddt_decoder.latents
import ddt_decoder.positions
import ddt_tokenizer.cli
import ddt_tokenizer.images
import ddt_tokenizer.latents
import ddt_tokenizer.positions
from ddt_data import SceneConfig, SceneGenerator, ShardDataset, ShardWriter, make_sample, render
from ddt_decoder import DDTDecoder, DecoderConfig, MMDiTConfig
from ddt_decoder.mmdit import MMDiT
from ddt_decoder.positions import exact_sincos
from ddt_llm import MultimodalLM, TinyLlamaConfig, VisualTokenizer, expand_vocabulary, tiny_llama, train_text_tokenizer
from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig, VectorConfig
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.encoder import Encoder
from ddt_tokenizer.images import to_tensor, to_uint8

ROOT = Path(__file__).parents[1]


def tokenizer_and_decoder(seed=0, num_tokens=4, codebook_size=32, image_size=32):
    torch.manual_seed(seed)
    encoder = EncoderConfig(width=32, depth=1, num_heads=2, num_tokens=num_tokens)
    quantizer = VectorConfig(codebook_size=codebook_size, code_width=6)
    tokenizer = DDTTokenizer(TokenizerConfig(image_size=image_size, encoder=encoder, quantizer=quantizer)).eval()
    network = MMDiTConfig(width=32, depth=1, num_heads=2, token_width=6)
    sizes = {"image_size": image_size, "codebook_size": codebook_size, "schedule": (num_tokens,)}
    decoder = DDTDecoder(DecoderConfig(**sizes, network=network))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    decoder.set_codebook(tokenizer.embed(torch.arange(codebook_size)), tokenizer.fingerprint())
    return tokenizer, decoder


@pytest.fixture
def codec():
    return Codec(*tokenizer_and_decoder())


@pytest.fixture
def scenes():
    config = SceneConfig.tiny()
    return to_tensor([render(SceneGenerator(config, seed=0)[i], config) for i in range(6)])


def test_the_decoder_embeds_ids_as_the_tokenizer_does(codec, scenes):
    ids = codec.encode(scenes)
    assert torch.equal(codec.decoder.embed(ids), codec.tokenizer.embed(ids))
    assert torch.equal(codec.decode(ids), codec.decode(codec.tokenizer.embed(ids)))


@pytest.mark.parametrize(("count", "height", "width"), [(16, 4, 4), (64, 8, 8), (7, 9, 5)])
def test_tokens_stand_where_queries_look(count, height, width):
    places = ddt_tokenizer.positions.spread_points(count, height, width)
    assert torch.equal(places, ddt_decoder.positions.spread_points(count, height, width))


def test_a_codec_is_a_visual_tokenizer_of_the_language_model(codec, scenes):
    assert isinstance(codec, VisualTokenizer)
    text_tokenizer = train_text_tokenizer(["a red star on a black background"], vocab_size=300)
    model = tiny_llama(TinyLlamaConfig(width=32, depth=1, num_heads=2), text_tokenizer)
    model, text_tokenizer = expand_vocabulary(
        model, text_tokenizer, codebook_size=codec.codebook_size, num_tokens=codec.num_tokens
    )
    lm = MultimodalLM(model, text_tokenizer, "instruction", codec.fingerprint)
    drawn = lm.generate([scenes[0], "make the star blue"], codec, output="image")
    assert drawn.ids.shape == (1, 4) and torch.equal(drawn.images, codec.decode(drawn.ids))
    stranger = Codec(*tokenizer_and_decoder(seed=1))
    with pytest.raises(ValueError, match=codec.fingerprint):
        lm.generate("a star", stranger, output="image")


def test_the_language_model_writes_first_what_the_decoder_calls_coarse(codec, scenes):
    text_tokenizer = train_text_tokenizer(["a star"], vocab_size=300)
    model = tiny_llama(TinyLlamaConfig(width=32, depth=1, num_heads=2), text_tokenizer)
    model, text_tokenizer = expand_vocabulary(model, text_tokenizer, codebook_size=32, num_tokens=4)
    vocabulary = MultimodalLM(model, text_tokenizer).vocabulary
    ids = codec.encode(scenes[:1])
    first_two = vocabulary.to_tokens(ids)[0, :2] - vocabulary.text_size
    changed = ids.clone()
    changed[:, :2] = (changed[:, :2] + 1) % 32  # all but the two coarsest
    assert first_two.tolist() == ids[0, [3, 2]].tolist()
    assert torch.equal(codec.decode(ids, keep_tokens=2), codec.decode(changed, keep_tokens=2))


@pytest.mark.parametrize("other", [{"seed": 1}, {"num_tokens": 5}, {"codebook_size": 16}, {"image_size": 64}])
def test_a_pair_that_does_not_belong_together_is_refused(other):
    tokenizer, _ = tokenizer_and_decoder()
    _, decoder = tokenizer_and_decoder(**other)
    named = {"seed": "fingerprint"}.get(next(iter(other)), next(iter(other)))
    with pytest.raises(ValueError, match=named):
        Codec(tokenizer, decoder)


def test_a_codec_survives_the_disk(codec, scenes, tmp_path):
    codec.tokenizer.save_pretrained(tmp_path / "tokenizer")
    codec.decoder.save_pretrained(tmp_path / "decoder")
    loaded = Codec.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(scenes), codec.encode(scenes)) and loaded.identity == codec.identity
    with pytest.raises(FileNotFoundError, match="train-tokenizer"):
        Codec.from_pretrained(tmp_path / "elsewhere")


def test_id_shards_carry_the_tokenizer_and_refuse_another(codec, tmp_path):
    sample = make_sample(SceneGenerator(SceneConfig.tiny(), seed=0), 0)
    for picture, ids in (("image", "ids"), ("target", "target_ids")):
        sample[ids] = codec.encode(to_tensor([sample.pop(picture)]))[0].numpy()
    with ShardWriter(tmp_path / "ids", tokenizer=codec.identity) as writer:
        writer.write(sample)
    assert (ShardDataset(tmp_path / "ids", tokenizer=codec.fingerprint)[0]["ids"] == sample["ids"]).all()
    with pytest.raises(ValueError, match="0123"):
        ShardDataset(tmp_path / "ids", tokenizer="0123")


def test_pictures_go_to_tensors_and_back(scenes):
    assert scenes.shape == (6, 3, 32, 32) and scenes.min() >= -1 and scenes.max() <= 1
    assert torch.equal(to_tensor(to_uint8(scenes)), scenes)


def test_examples_of_the_language_model_are_functions_of_seed_and_index():
    from ddt_apps.train.examples import InstructionTasks, PretrainTasks, Views, instruction_example, pretraining_example

    text_tokenizer = train_text_tokenizer(["a star"], vocab_size=300)
    model = tiny_llama(TinyLlamaConfig(width=32, depth=1, num_heads=2), text_tokenizer)
    model, text_tokenizer = expand_vocabulary(model, text_tokenizer, codebook_size=32, num_tokens=4)
    sequences = MultimodalLM(model, text_tokenizer).sequences
    generator, rng = SceneGenerator(SceneConfig.tiny(), seed=0), random.Random(0)
    samples = []
    for i in range(5):
        sample = make_sample(generator, i)
        sample["ids"], sample["target_ids"] = torch.randint(32, (2, 4)).numpy()
        samples.append(sample)
    for make in (
        pretraining_example(sequences, PretrainTasks(), ["plain text"]),
        instruction_example(sequences, InstructionTasks()),
    ):
        one, two, other = (Views(samples, make, seed) for seed in (0, 0, 1))
        picks = [rng.randrange(len(one)) for _ in range(60)]
        assert all(torch.equal(one[i].labels, two[i].labels) for i in picks)
        assert any(one[i].labels.shape != other[i].labels.shape for i in picks)
        assert len({len(one[i * 5].labels) for i in range(20)}) > 1  # one sample, different tasks


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "CMYK"])
def test_training_and_use_see_the_same_picture(mode, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 2**16, (40, 50), dtype=np.uint16))
    else:
        picture = Image.fromarray(rng.integers(0, 256, (40, 50, 4), dtype=np.uint8), "RGBA").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    packed = to_tensor([ddt_data.load_image(path, 32)])[0]
    assert torch.equal(packed, ddt_tokenizer.images.as_images(path, 32)[0])


def test_id_shards_of_the_tokenizers_own_command_are_read_as_any_other(tmp_path):
    tokenizer, _ = tokenizer_and_decoder()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    generator = SceneGenerator(SceneConfig.tiny(), seed=0)
    samples = [make_sample(generator, i) for i in range(3)]
    with ShardWriter(tmp_path / "pictures", image_size=32) as writer:
        for sample in samples:
            writer.write(sample)
    command = ["encode", tmp_path / "pictures", "--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "ids"]
    ddt_tokenizer.cli.main([str(word) for word in command])
    dataset = ShardDataset(tmp_path / "ids", tokenizer=tokenizer.fingerprint())
    dataset.check()
    assert len(dataset) == 3
    for i, sample in enumerate(samples):
        expected = {"key": sample["key"], "text": sample["text"], "meta": json.loads(json.dumps(sample["meta"]))}
        for picture, ids in (("image", "ids"), ("target", "target_ids")):
            expected[ids] = tokenizer.encode(to_tensor([sample[picture]]))[0].tolist()
        found = dataset[i]
        assert found | {name: found[name].tolist() for name in ("ids", "target_ids")} == expected


@pytest.mark.parametrize("module", [ddt_decoder.latents, ddt_tokenizer.latents])
def test_both_packages_read_names_of_autoencoders_alike(module, tmp_path):
    assert module.split_source("owner/name") == ("owner/name", {})
    assert module.split_source("owner/name/vae") == ("owner/name", {"subfolder": "vae"})
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert module.split_source(str(tmp_path / "a" / "b")) == (str(tmp_path / "a" / "b"), {})


def test_spatial_ids_stand_where_the_decoder_places_their_tokens():
    """So that the baseline of one id a patch meets a decoder no worse prepared, and prefixes cover the picture."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=32, num_heads=2, num_tokens=16, mode="spatial", start="grid"), (4, 4))
    encoder.blocks = encoder.blocks[:0]
    torch.nn.init.zeros_(encoder.patch_in.weight)
    torch.nn.init.zeros_(encoder.patch_in.bias)
    network = MMDiT(MMDiTConfig(width=32, depth=1, num_heads=2, start="grid"), num_tokens=16, grid=(4, 4))
    places = encoder(torch.zeros(1, 3, 32, 32))[0]  # nothing but where each patch is
    assert torch.allclose(places, encoder.norm(network.token_order), atol=1e-5)
    with pytest.raises(ValueError, match="the size it was made for"):
        encoder(torch.zeros(1, 3, 16, 64))


def test_both_halves_of_one_selftok_checkpoint_make_a_run(tmp_path):
    """The encoder's half is what the public code wrote; the decoder's has its names and shapes, for as many ids."""
    public = load_file(ROOT / "packages/ddt-tokenizer/tests/selftok.safetensors")
    state = {name: tensor for name, tensor in public.items() if name.startswith("encoder.")}
    with safe_open(ROOT / "packages/ddt-decoder/tests/fixtures/selftok.safetensors", "pt") as file:
        shapes = json.loads(file.metadata()["decoder"])
    torch.manual_seed(0)
    for name, (_, *shape) in shapes.items():
        if name.startswith("model."):
            state[name] = torch.randn(shape) * 0.05
    state["model.context_pos_embed"] = exact_sincos(torch.arange(6) * 8 + 1000, 128)[None]
    state["diffusion.betas"] = torch.zeros(3)
    torch.save(state, tmp_path / "selftok.pth")
    with pytest.raises(ValueError, match=r"schedule \(None\) must sum to its 6 tokens"):
        Codec.from_selftok(tmp_path / "selftok.pth", num_heads=4, image_heads=2)
    codec = Codec.from_selftok(tmp_path / "selftok.pth", schedule=(3, 2, 1), num_heads=4, image_heads=2)
    codec.save_pretrained(tmp_path / "run")
    loaded = Codec.from_pretrained(tmp_path / "run")
    assert loaded.fingerprint == loaded.decoder.tokenizer_fingerprint and loaded.num_tokens == 6
    ids = loaded.tokenizer.encode_latents(public["latents0"])
    assert torch.equal(ids, public["ids0"])
    assert torch.allclose(loaded.decoder.embed(ids), public["tokens0"], atol=1e-5)
    noise = torch.randn(4, 4, 8, 8)
    velocity = loaded.decoder.velocity(noise, torch.full((4,), 0.5), loaded.decoder.as_tokens(ids))
    assert velocity.shape == noise.shape and velocity.isfinite().all()
