"""`ddt export`: what other programs read, read by them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.evaluation.scores import Scores
from ddt_apps.export.diffusers import DDTPipeline
from ddt_apps.shards.make import make_scenes
from ddt_data.shards.manifest import Manifest
from ddt_decoder import DDTDecoder, DecoderConfig, MMDiTConfig
from ddt_decoder.flow import FlowConfig
from ddt_llm import MultimodalLM, TinyLlamaConfig, expand_vocabulary, tiny_llama, train_text_tokenizer
from ddt_tokenizer import Codec, DDTTokenizer, EncoderConfig, TokenizerConfig
from ddt_tokenizer.images import to_tensor

PAGE = (Path(__file__).resolve().parents[2] / "docs/exports.md").read_text()
SHAPE = {"patch_size": 8, "width": 16, "depth": 1, "num_heads": 2}


def codec_of_chance(flow):
    torch.manual_seed(0)
    encoder = EncoderConfig(**SHAPE, num_tokens=4)
    tokenizer = DDTTokenizer(TokenizerConfig(image_size=16, encoder=encoder)).eval()
    decoder = DDTDecoder(DecoderConfig(image_size=16, schedule=(4,), network=MMDiTConfig(**SHAPE), flow=flow))
    with torch.no_grad():
        decoder.network.patch_out.weight.normal_(std=0.3)
    decoder.set_codebook(tokenizer.embed(torch.arange(512)), tokenizer.fingerprint())
    return Codec(tokenizer, decoder)


def lm_of_chance(codec, template):
    words = train_text_tokenizer(["a red fox", "make it blue"], vocab_size=300)
    small = TinyLlamaConfig(width=32, depth=1, num_heads=2, max_positions=96)
    sizes = {"codebook_size": codec.codebook_size, "num_tokens": codec.num_tokens}
    lm = MultimodalLM(*expand_vocabulary(tiny_llama(small, words), words, **sizes), template, codec.fingerprint)
    with torch.no_grad():  # larger weights than at the start, so that predictions differ
        for weight in lm.model.parameters():
            weight.mul_(4)
    return lm


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ddt(*words):
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def python_of(heading):
    """The Python block of a section of the page."""
    section = PAGE.partition(f"## {heading}")[2].partition("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def test_a_picture_goes_to_ids_and_back_without_torch(here):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    codec = codec_of_chance(FlowConfig(full_noise_share=1.0))
    codec.save_pretrained("runs/mine")
    said = ddt("export", "onnx", "runs/mine", "--out", "my-onnx")
    assert "100.0% of the ids" in said and "blurred" not in said
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(picture).save("fox.png")
    without = "import sys\nsys.modules['torch'] = None\n" + python_of("ONNX: without torch")
    subprocess.run([sys.executable, "-c", without + "\nnp.save('ids.npy', ids)"], check=True)
    assert np.array_equal(np.load("ids.npy"), codec.encode(to_tensor([picture])).numpy())
    drawn = [np.asarray(Image.open(f"fox-{keep}.png")) for keep in (1, 2, 4)]
    assert all(each.shape == (16, 16, 3) for each in drawn) and not np.array_equal(drawn[0], drawn[2])


def test_a_folder_for_the_hub_says_what_is_known(here):
    codec = codec_of_chance(FlowConfig(full_noise_share=1.0))
    codec.save_pretrained("runs/mine")
    make_scenes(Path("sc"), 3, level="tiny")
    Path("runs/mine/config.yaml").write_text("data: sc:0.5,gone:0.5\n")
    scores = Scores("reconstruction", {}, {"seed": 3}, {"psnr": 21.52, "psnr_standard_error": 0.1, "by": {"a": 1}}, {})
    scores.save(Path("runs/mine/evaluation/reconstruction"))
    said = ddt("export", "hub", "runs/mine", "--out", "mine-hub", "--licence", "cc-by-4.0")
    assert "--push OWNER/NAME" in said
    assert torch.equal(
        Codec.from_pretrained("mine-hub").decode(torch.zeros(1, 4).long()), codec.decode(torch.zeros(1, 4).long())
    )
    card = ModelCard.load("mine-hub/README.md")
    assert card.data.license == "cc-by-4.0" and "4 ids of 512: 36 bits an image" in card.text
    assert f"| reconstruction | psnr | 21.52 ± 0.1 | {scores.protocol_id} |" in card.text and "by.a" not in card.text
    manifest = Manifest.read("sc")
    assert f"| sc | 3 | {manifest.source[:80]}... | ? |" in card.text and "| gone | 0 |" in card.text


def test_diffusers_draws_what_the_model_draws(here):
    codec = codec_of_chance(FlowConfig(full_noise_share=1.0))
    codec.save_pretrained("runs/mine")
    lm = lm_of_chance(codec, "instruction")
    lm.save_pretrained("runs/lm/model")
    ddt("export", "diffusers", "runs/lm", "--out", "pipeline")
    pipeline = DiffusionPipeline.from_pretrained("pipeline", trust_remote_code=True)
    generator = torch.Generator().manual_seed(5)
    drawn = pipeline(["a red fox", "a fox"], num_images_per_prompt=2, generator=generator, output_type="pt").images
    seeds = torch.randint(2**31, (4,), generator=torch.Generator().manual_seed(5)).tolist()
    for image, seed, prompt in zip(drawn, seeds, ["a red fox"] * 2 + ["a fox"] * 2, strict=True):
        ids = lm.generate(prompt, output="image", seed=seed).ids
        torch.testing.assert_close(image * 2 - 1, codec.decode(ids, seed=seed)[0], atol=1e-5, rtol=0)
    assert not torch.equal(drawn[0], drawn[1])

    # Another way in, a picture to be edited, and again to a folder.
    again = DDTPipeline.from_pretrained("pipeline")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    edited = [each("make it blue", picture, generator=generator.manual_seed(1)).images[0] for each in (pipeline, again)]
    assert edited[0].size == (16, 16) and np.array_equal(*map(np.asarray, edited))
    again.save_pretrained("copy")
    (copied,) = DDTPipeline.from_pretrained("copy")("a fox", generator=generator.manual_seed(2), return_dict=False)
    assert np.array_equal(copied[0], pipeline("a fox", generator=generator.manual_seed(2)).images[0])
    with pytest.raises(ValueError, match="guidance_scale"):
        pipeline("a fox", guidance_scale=-1)


def test_a_gguf_file_has_its_grammar_beside_it(here):
    gguf = pytest.importorskip("gguf", reason="needs the extra export")
    lm = lm_of_chance(codec_of_chance(FlowConfig()), "caption")
    lm.save_pretrained("runs/lm/model")
    said = ddt("export", "gguf", "runs/lm", "--out", "files/lm.gguf", "--kind", "q8_0")
    assert said.startswith("files/lm.gguf has 0.") and "MB of q8_0" in said
    read = gguf.GGUFReader("files/lm.gguf")
    names = read.get_field("tokenizer.ggml.tokens").contents()
    assert names[lm.vocabulary.boi] == "<boi>" and names[lm.vocabulary.text_size + 3] == "<v_3>"
    grammar = Path("files/lm.gbnf").read_text()
    assert grammar.startswith(f"root ::= <[{lm.vocabulary.boi}]> visual{{4}} ") and grammar.count(" | ") == 511
