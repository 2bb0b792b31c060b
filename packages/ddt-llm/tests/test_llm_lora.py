import copy
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM

from ddt_llm import MultimodalLM, OptimizerConfig, VisualVocabulary, collate, expand_vocabulary, load_backbone
from ddt_llm.four_bits import layers_in_four_bits
from ddt_llm.lora import LoRAConfig, add_lora, merge_lora
from ddt_llm.training import LanguageModelTraining


@pytest.mark.parametrize("kind", ["smollm2", "llama", "phi", "gpt2"])  # tied; untied; with a bias; other linear layers
def test_adapters_and_new_rows_learn_and_the_rest_stays(
    backbone, kind, text_tokenizer, ids, tmp_path, make_lm, train_steps
):
    model, _ = expand_vocabulary(backbone(kind, len(text_tokenizer)), text_tokenizer, codebook_size=16, num_tokens=6)
    before, text = copy.deepcopy(model.state_dict()), VisualVocabulary.from_config(model.config).text_size
    adapted = add_lora(model, LoRAConfig(rank=2, alpha=4))
    batch = collate([make_lm().sequences.text_to_image("a red fox", ids[0])], 0)
    train_steps(LanguageModelTraining(model, OptimizerConfig(steps=5, lr=0.05), keep_text=True), [batch] * 5)
    model.eval()
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits
    changed = {name for name, tensor in model.state_dict().items() if name in before and not tensor.equal(before[name])}
    assert changed and all(tensor.shape[0] >= text for name in changed for tensor in [before[name]])  # tables alone
    for name in changed:
        assert torch.equal(model.state_dict()[name][:text], before[name][:text])
        assert not torch.equal(model.state_dict()[name][text:], before[name][text:])
    assert any("lora_B" in name and tensor.abs().sum() > 0 for name, tensor in model.state_dict().items())

    merged = merge_lora(adapted)
    assert merged is model and merged.state_dict().keys() == before.keys()
    merged.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(merged(batch["input_ids"]).logits, logits, atol=1e-5, rtol=1e-5)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(again(batch["input_ids"]).logits, merged(batch["input_ids"]).logits)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes (extra qlora) is not installed")
@pytest.mark.parametrize("kind", ["smollm2", "phi"])  # tied; layers and a head with biases
def test_adapters_learn_beside_four_bits_and_become_plain_weights(
    backbone, kind, text_tokenizer, ids, tmp_path, make_lm, train_steps
):
    backbone(kind, len(text_tokenizer)).save_pretrained(tmp_path / "text")
    text_tokenizer.save_pretrained(tmp_path / "text")

    def begin():
        model, tokenizer = expand_vocabulary(*load_backbone(tmp_path / "text", bits=4), codebook_size=16, num_tokens=6)
        adapted = add_lora(model, LoRAConfig(rank=2, alpha=4, bits=4))
        return adapted, LanguageModelTraining(model, OptimizerConfig(steps=5, lr=0.05), keep_text=True), tokenizer

    adapted, training, tokenizer = begin()
    model = training.model
    frozen = {name: layer.weight.data.clone() for name, layer in layers_in_four_bits(model)}
    assert len(frozen) > 8 and all(data.dtype == torch.uint8 for data in frozen.values())
    before, text = copy.deepcopy(training.state_dict()), VisualVocabulary.from_config(model.config).text_size
    batch = collate([make_lm().sequences.text_to_image("a red fox", ids[0])], 0)
    train_steps(training, [batch] * 5)
    for name, layer in layers_in_four_bits(model):
        assert torch.equal(layer.weight.data, frozen[name])
    changed = {name for name, tensor in training.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[-1] for name in changed} == {"weight", *({"bias"} if kind == "phi" else {})}
    for name in changed:
        assert "lora_" in name or torch.equal(training.state_dict()[name][:text], before[name][:text])

    _, again, _ = begin()
    again.load_state_dict(training.state_dict())  # without the weights in four bits, which are the backbone's
    logits = [each.model.eval()(batch["input_ids"]).logits for each in (training, again)]
    assert torch.equal(*logits)

    lm = MultimodalLM(merge_lora(adapted), tokenizer)
    lm.save_pretrained(tmp_path / "model")
    saved = MultimodalLM.from_pretrained(tmp_path / "model").model
    torch.testing.assert_close(saved(batch["input_ids"]).logits, logits[0], atol=1e-5, rtol=1e-5)
    assert not list(layers_in_four_bits(model)) and saved.state_dict().keys() == lm.model.state_dict().keys()
    assert not hasattr(saved.config, "quantization_config")


def test_four_bits_without_their_package_are_refused_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr("ddt_llm.four_bits.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^bits \(4\) needs bitsandbytes and accelerate: pip install"):
        load_backbone(tmp_path, bits=4)
    with pytest.raises(ValueError, match=r"^bits \(8\) must be 4 or 32"):
        load_backbone(tmp_path, bits=8)
    with pytest.raises(ValueError, match=r"bits \(4\) must be 32 for 'model\.gguf'"):
        load_backbone("model.gguf", bits=4)


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ValueError, match="rank"):
        LoRAConfig(rank=0)
