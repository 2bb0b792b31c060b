"""The tokenizer: contracts of ids, inputs, checkpoints; encoder, health and the command."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ddt_tokenizer import DDTTokenizer, Encoder, EncoderConfig, TokenizerConfig, VectorConfig
from ddt_tokenizer.cli import main
from ddt_tokenizer.health import codebook_health


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    encoder = EncoderConfig(patch_size=4, width=32, depth=2, num_heads=2, num_tokens=5)
    return DDTTokenizer(
        TokenizerConfig(image_size=16, encoder=encoder, quantizer=VectorConfig(codebook_size=64, code_width=6))
    ).eval()


def test_ids_have_the_promised_shape_and_range(tokenizer):
    ids = tokenizer.encode(torch.rand(7, 3, 16, 16) * 2 - 1)
    assert ids.shape == (7, 5) and ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < 64


def test_tensors_pictures_and_paths_give_the_same_ids(tokenizer, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1
    ids = tokenizer.encode(tensor)
    assert torch.equal(ids, tokenizer.encode(tmp_path / "a.png"))
    assert torch.equal(ids, tokenizer.encode([Image.fromarray(array)]))
    assert torch.equal(ids, tokenizer.encode_latents(tensor))


@pytest.mark.parametrize("position", ["learned", "sincos", "adaln"])
def test_a_bf16_tokenizer_writes_nearly_the_same_ids_and_keeps_its_codebook(position):
    torch.manual_seed(0)
    encoder = EncoderConfig(patch_size=4, width=32, depth=2, num_heads=2, num_tokens=5, query_position=position)
    tokenizer = DDTTokenizer(
        TokenizerConfig(image_size=16, encoder=encoder, quantizer=VectorConfig(codebook_size=64, code_width=6))
    ).eval()
    images = torch.rand(40, 3, 16, 16) * 2 - 1
    ids, codebook = tokenizer.encode(images), tokenizer.quantizer.codebook.clone()
    tokenizer.to(torch.bfloat16)
    assert tokenizer.encoder.queries.dtype == torch.bfloat16
    assert torch.equal(tokenizer.quantizer.codebook, codebook) and tokenizer.embed(ids).dtype == torch.float32
    assert (tokenizer.encode(images) == ids).float().mean() > 0.9
    assert tokenizer.to("meta").quantizer.codebook.is_meta


def test_an_image_has_the_same_ids_in_any_batch(tokenizer):
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    assert torch.equal(tokenizer.encode(images)[2:3], tokenizer.encode(images[2:3]))


def test_embed_equals_what_training_feeds_the_decoder(tokenizer):
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    assert torch.allclose(tokenizer.embed(tokenizer.encode(images)), tokenizer(images).tokens, atol=1e-6)


def test_every_query_depends_on_every_part_of_the_image(tokenizer):
    images = (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_()
    for k in range(5):
        (gradient,) = torch.autograd.grad(tokenizer.encoder(images)[0, k].norm(), images)
        by_patch = gradient.abs().unflatten(2, (4, 4)).unflatten(4, (4, 4)).sum(dim=(1, 3, 5))
        assert (by_patch > 0).all()


def test_every_weight_of_the_encoder_is_trained():
    encoder = Encoder(EncoderConfig(patch_size=4, width=32, depth=3, num_heads=2, num_tokens=5))
    encoder(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_a_saved_tokenizer_is_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "t")
    loaded = DDTTokenizer.from_pretrained(tmp_path / "t")
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert loaded.config == tokenizer.config and loaded.fingerprint() == tokenizer.fingerprint()


def test_the_fingerprint_follows_the_weights_and_not_the_counters(tokenizer):
    before = tokenizer.fingerprint()
    tokenizer.quantizer.counts += 1
    assert tokenizer.fingerprint() == before
    tokenizer.quantizer.codebook[0, 0] += 1e-3
    assert tokenizer.fingerprint() != before


def test_bad_input_is_named(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"divisible by 4"):
        tokenizer.encode(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match=r"takes \[B, 3, H, W\]"):
        tokenizer.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match=r"this encoder takes \[B, 3, H, W\]"):
        tokenizer.encode_latents(torch.zeros(1, 16, 16, 16))
    with pytest.raises(FileNotFoundError, match="none"):
        tokenizer.encode(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match="text"):
        tokenizer.encode([tmp_path / "text.png"])
    with pytest.raises(FileNotFoundError, match="no ddt-tokenizer"):
        DDTTokenizer.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="divisible by patch_size"):
        TokenizerConfig(image_size=30)


def test_changed_weights_are_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match="not those that its config"):
        DDTTokenizer.from_pretrained(tmp_path)


def test_transparency_and_orientation_are_applied(tokenizer, tmp_path):
    from ddt_tokenizer.images import as_images

    Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (as_images(tmp_path / "clear.png", 8) == 1).all()
    lying = Image.new("RGB", (8, 8), "black")
    lying.paste("white", (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    lying.save(tmp_path / "turned.png", exif=exif)
    assert as_images(tmp_path / "turned.png", 8)[0, 0, 7, 0] > 0.9


def test_health_tells_collapse_from_health():
    torch.manual_seed(0)
    ids = torch.randint(64, (2000, 4))
    good = codebook_health(ids, torch.randn(64, 8))
    assert good.usage == 1 and good.perplexity > 60 and good.effective_dimensions > 6
    assert abs(good.bits_per_position - 6) < 0.1
    line = torch.randn(64, 1) * torch.randn(1, 8)
    flat = codebook_health(torch.zeros(50, 4, dtype=torch.long), line)
    assert flat.usage == 1 / 64 and flat.codes_per_position == 1
    assert flat.effective_dimensions == pytest.approx(1, abs=1e-3)


def test_the_command_encodes_and_explains(tokenizer, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "t")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    main(["encode", str(tmp_path / "red.png"), "--tokenizer", str(tmp_path / "t"), "--out", str(tmp_path / "ids.npz")])
    saved = np.load(tmp_path / "ids.npz")
    assert np.array_equal(saved["ids"], tokenizer.encode(tmp_path / "red.png").numpy())
    main(["info", str(tmp_path / "t")])
    assert '"codebook_size": 64' in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["encode", str(tmp_path / "no.png"), "--tokenizer", str(tmp_path / "t"), "--out", str(tmp_path / "x.npz")])
    assert stop.value.code == 2 and "no.png" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_import_is_light():
    heavy = "{'lightning', 'omegaconf', 'transformers', 'diffusers'}"
    subprocess.run(
        [sys.executable, "-c", f"import sys, ddt_tokenizer; assert not {heavy} & set(sys.modules)"], check=True
    )
