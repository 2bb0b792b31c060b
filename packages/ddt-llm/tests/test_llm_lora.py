import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from ddt_llm import OptimizerConfig, VisualVocabulary, collate, expand_vocabulary
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


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ValueError, match="rank"):
        LoRAConfig(rank=0)
