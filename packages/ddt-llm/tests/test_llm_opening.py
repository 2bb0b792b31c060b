"""Folders from anywhere: nothing foreign runs, nothing is made up, and what is wrong is one line that names it."""

import json
import shutil
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddt_llm import MultimodalLM, expand_vocabulary, load_backbone


@pytest.fixture
def folders(tmp_path, backbone, text_tokenizer, make_lm):
    """A backbone and a saved multimodal model, by what opens them."""
    backbone("llama", len(text_tokenizer)).save_pretrained(tmp_path / "backbone")
    text_tokenizer.save_pretrained(tmp_path / "backbone")
    make_lm().save_pretrained(tmp_path / "model")
    return {load_backbone: tmp_path / "backbone", MultimodalLM.from_pretrained: tmp_path / "model"}


def write(folder, **settings):
    """Change the config of a model."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def weights(folder, change):
    """Change the weights of a model."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def cut(folder, share):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def code(folder, part, **where):
    """Bring code that would leave a mark; `part` is the file that asks for it."""
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nfrom transformers import LlamaConfig as Own\n")
    file = folder / part
    file.write_text(json.dumps({**json.loads(file.read_text()), **where}))


def index(folder, names):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def put(name, text):
    return lambda folder: (folder / name).write_text(text)


NORM = "model.layers.0.input_layernorm.weight"
WRONG = {
    "unknown type": (lambda f: write(f, model_type="own"), "model_type 'own'"),
    "no type": (lambda f: write(f, model_type=None), "model_type None"),
    "code for the model": (
        lambda f: code(f, "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"}),
        "never run",
    ),
    "code for the tokenizer": (
        lambda f: code(f, "tokenizer_config.json", tokenizer_class="O", auto_map={"AutoTokenizer": ["own.Own", None]}),
        "custom code",
    ),
    "an encoder and decoder": (lambda f: write(f, model_type="t5"), "T5Config"),
    "an adapter": (put("adapter_config.json", '{"base_model_name_or_path": "another"}'), "adapter"),
    "quantized": (lambda f: write(f, quantization_config={"quant_method": "gptq"}), "quantized"),
    "a pickle": (as_pickle, "pickles are not read"),
    "a list": (put("config.json", "[1]"), "config.json"),
    "deep": (put("config.json", "[" * 100_000), "config.json is damaged"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "wide": (lambda f: write(f, hidden_size=2**20), "weights, its files hold"),
    "deep model": (lambda f: write(f, num_hidden_layers=10**8), "has 100000000 layers"),
    "many rows": (lambda f: write(f, vocab_size=10**9), "weights, its files hold"),
    "one layer less": (lambda f: write(f, num_hidden_layers=1), r"no place in the model, such as model\.layers\.1"),
    "narrow": (lambda f: write(f, intermediate_size=24), "other shapes"),
    "no heads": (lambda f: write(f, num_attention_heads=0), "ZeroDivisionError"),
    "a word for a number": (lambda f: write(f, hidden_size="much"), "hidden_size"),
    "a weight less": (lambda f: weights(f, lambda w: w.pop(NORM)), "weights"),
    "a weight under another name": (lambda f: weights(f, lambda w: w.update(other=w.pop(NORM))), "layernorm"),
    "a weight more": (lambda f: weights(f, lambda w: w.update(other=torch.ones(2))), "no place in the model"),
    "another shape": (lambda f: weights(f, lambda w: w.update({NORM: torch.ones(99)})), "input_layernorm"),
    "cut in the header": (lambda f: cut(f, 0.01), r"model\.safetensors is cut or damaged"),
    "cut at the end": (lambda f: cut(f, 0.99), r"model\.safetensors is cut or damaged"),
    "empty": (lambda f: cut(f, 0), r"model\.safetensors is cut or damaged"),
    "a part is missing": (lambda f: index(f, {NORM: "other.safetensors"}), r"other\.safetensors"),
    "a part outside": (lambda f: index(f, {NORM: "../backbone/part.safetensors"}), "not in the folder"),
    "no tokenizer": (lambda f: [file.unlink() for file in f.glob("tokenizer*")], "tokenizer"),
    "a tokenizer of nothing": (put("tokenizer.json", "{}"), "language model"),
}


@pytest.mark.parametrize("opens", [load_backbone, MultimodalLM.from_pretrained], ids=["backbone", "model"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_one_line(folders, opens, wrong, capfd, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder, (change, said) = folders[opens], WRONG[wrong]
    change(folder)
    capfd.readouterr()
    with pytest.raises(ValueError, match=said) as caught:
        opens(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and len(message) < 500 + len(str(folder))
    assert not (folder / "ran").exists() and "own" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_sizes_are_compared_before_there_is_memory_for_them(folders):
    """A model of 4 x 10^15 weights, beside a file of 30,000, is refused at once."""
    folder = folders[load_backbone]
    write(folder, hidden_size=2**20, intermediate_size=2**22, num_hidden_layers=20, vocab_size=10**9)
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"config\.json describes"):
        load_backbone(folder)
    assert time.perf_counter() - started < 5


def test_code_beside_a_model_that_needs_none_is_left_alone(folders):
    """Nor is a kernel fetched that a config names."""
    for opens, folder in folders.items():
        code(folder, "config.json", auto_map={"AutoModelForCausalLM": "own.Own"}, attn_implementation="some/kernel")
        assert opens(folder) and not (folder / "ran").exists()


@pytest.mark.parametrize("tied", ["smollm2", "llama"])
def test_a_model_in_parts_opens_equal_and_silently(tmp_path, backbone, text_tokenizer, tied, capfd):
    model = backbone(tied, len(text_tokenizer))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    text_tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    state = torch.get_rng_state()
    capfd.readouterr()
    again, tokenizer = load_backbone(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state) and tokenizer.get_vocab() == text_tokenizer.get_vocab()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


SETTINGS = {
    "nothing": ({}, "format None"),
    "the format alone": ({"format": 1}, "template"),
    "a list": ([], "format None"),
    "no size": ({"text_size": ...}, "must give text_size"),
    "words": ({"codebook_size": "16"}, "codebook_size"),
    "halves": ({"num_tokens": 6.0}, "num_tokens"),
    "truth": ({"num_tokens": True}, "num_tokens"),
    "below 1": ({"codebook_size": -3}, "codebook_size"),
    "another order": ({"visual_order": ["tokenizer"]}, "visual_order"),
    "another template": ({"template": "chat"}, "template"),
    "no template": ({"template": None}, "template"),
    "a number for a name": ({"visual_fingerprint": 7}, "visual_fingerprint"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_make_no_sense_are_named(folders, case):
    folder, (change, said) = folders[MultimodalLM.from_pretrained], SETTINGS[case]
    file = folder / "ddt.json"
    settings = json.loads(file.read_text())
    if change and "format" not in change:
        settings = {name: value for name, value in {**settings, **change}.items() if value is not ...}
    else:
        settings = change
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=said):
        MultimodalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "change", [{"codebook_size": 10**9}, {"codebook_size": 9}, {"text_size": 7}, {"num_tokens": 999}]
)
def test_a_vocabulary_that_does_not_fit_is_refused(folders, change):
    folder = folders[MultimodalLM.from_pretrained]
    settings = json.loads((folder / "ddt.json").read_text()) | change
    (folder / "ddt.json").write_text(json.dumps(settings))
    write(folder, ddt={name: settings[name] for name in ("text_size", "codebook_size", "num_tokens", "visual_order")})
    with pytest.raises(ValueError, match=r"does not fit this model|an image and a word take"):
        MultimodalLM.from_pretrained(folder)


def test_a_tokenizer_of_another_model_is_refused(folders):
    folder = folders[MultimodalLM.from_pretrained]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders[load_backbone] / name, folder / name)
    with pytest.raises(ValueError, match="does not fit this model"):
        MultimodalLM.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folders, value):
    for folder in folders.values():
        weights(folder, lambda w: w[NORM].fill_(value))
    with pytest.raises(ValueError, match="not finite"):
        MultimodalLM.from_pretrained(folders[MultimodalLM.from_pretrained])
    with pytest.raises(ValueError, match="not finite"):
        expand_vocabulary(folders[load_backbone], codebook_size=16, num_tokens=6)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, b"hello " * 50])
def test_a_damaged_gguf_is_one_line(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.gguf") as caught:
        load_backbone(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf"):
        load_backbone(tmp_path / "nowhere.gguf")


@pytest.mark.parametrize("opens", [load_backbone, MultimodalLM.from_pretrained], ids=["backbone", "model"])
def test_a_model_without_its_weights_has_all_else(folders, opens, monkeypatch):
    (folders[opens] / "generation_config.json").write_text('{"eos_token_id": 1, "temperature": 0.5, "do_sample": true}')
    whole, empty = opens(folders[opens]), opens(folders[opens], device="meta")
    (whole, tokenizer), (empty, own) = (
        (each.model, each.text_tokenizer) if opens is not load_backbone else each for each in (whole, empty)
    )
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}
    described = [{name: (w.shape, w.dtype) for name, w in model.named_parameters()} for model in (whole, empty)]
    assert described[0] == described[1] and tokenizer.get_vocab() == own.get_vocab()
    assert whole.generation_config.to_dict() == empty.generation_config.to_dict()
    assert whole.config.to_dict() == empty.config.to_dict()
