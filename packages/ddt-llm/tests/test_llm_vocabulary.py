import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ddt_llm import VisualVocabulary, expand_vocabulary
from ddt_llm.vocabulary import _draw_new_rows


def backbone(kind: str, vocab_size: int):
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size + (8 if kind == "padded" else 0),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=kind == "tied",
        )
    )


@pytest.mark.parametrize("kind", ["tied", "untied", "padded", "gpt2"])
def test_text_rows_and_text_logits_keep_every_bit(kind, text_tokenizer):
    model, size = backbone(kind, len(text_tokenizer)), len(text_tokenizer)
    tokens = torch.randint(size, (2, 9))
    before = model.eval()(tokens).logits[..., :size]
    rows = model.get_input_embeddings().weight[:size].clone()
    head = model.get_output_embeddings().weight[:size].clone()
    model, tokenizer = expand_vocabulary(model, text_tokenizer, codebook_size=12, num_tokens=4)
    assert torch.equal(model.get_input_embeddings().weight[:size], rows)
    assert torch.equal(model.get_output_embeddings().weight[:size], head)
    torch.testing.assert_close(model(tokens).logits[..., :size], before, atol=1e-6, rtol=0)
    vocabulary = VisualVocabulary.from_config(model.config)
    assert vocabulary == VisualVocabulary(size, 12, 4)
    assert tokenizer.convert_tokens_to_ids(["<v_0>", "<v_11>", "<boi>", "<eoi>"]) == [
        size,
        size + 11,
        vocabulary.boi,
        vocabulary.eoi,
    ]


def test_new_rows_have_mean_and_covariance_of_the_old_ones(text_tokenizer):
    model, _ = expand_vocabulary(
        backbone("tied", len(text_tokenizer)), text_tokenizer, codebook_size=20000, num_tokens=4
    )
    vocabulary, table = VisualVocabulary.from_config(model.config), model.get_input_embeddings().weight.data
    table[: vocabulary.text_size, 1] += table[: vocabulary.text_size, 0] + 0.1
    _draw_new_rows(model, vocabulary, torch.Generator().manual_seed(0))
    old, new = table[: vocabulary.text_size], table[vocabulary.visual]
    torch.testing.assert_close(new.mean(0), old.mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(new.T.cov(), old.T.cov(correction=0), atol=5e-5, rtol=0)
    assert len(new.unique(dim=0)) == len(new)


def test_a_second_expansion_is_refused(text_tokenizer):
    model, tokenizer = expand_vocabulary(
        backbone("tied", len(text_tokenizer)), text_tokenizer, codebook_size=8, num_tokens=4
    )
    with pytest.raises(ValueError, match="visual vocabulary already"):
        expand_vocabulary(model, text_tokenizer, codebook_size=8, num_tokens=4)
    with pytest.raises(ValueError, match="visual vocabulary already"):
        expand_vocabulary(backbone("tied", 400), tokenizer, codebook_size=8, num_tokens=4)
    assert "<boi>" not in text_tokenizer.get_vocab()  # the caller's tokenizer is left alone


def test_expansion_of_a_folder_survives_plain_transformers_saving(tmp_path, text_tokenizer):
    backbone("untied", len(text_tokenizer)).save_pretrained(tmp_path / "text")
    text_tokenizer.save_pretrained(tmp_path / "text")
    model, tokenizer = expand_vocabulary(tmp_path / "text", codebook_size=8, num_tokens=4, visual_order="tokenizer")
    model.save_pretrained(tmp_path / "both")
    tokenizer.save_pretrained(tmp_path / "both")
    again, tokenizer_again = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "both"),
        AutoTokenizer.from_pretrained(tmp_path / "both"),
    )
    assert VisualVocabulary.from_config(again.config).visual_order == "tokenizer"
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert tokenizer_again.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("order", ["coarse_to_fine", "tokenizer"])
def test_orders_round_trip(order):
    vocabulary = VisualVocabulary(100, 16, 6, order)
    ids = torch.randint(16, (5, 6))
    tokens = vocabulary.to_tokens(ids)
    assert torch.equal(vocabulary.to_ids(tokens), ids)
    assert torch.equal(tokens[:, 0] - 100, ids[:, -1 if order == "coarse_to_fine" else 0])


def test_ids_that_do_not_belong_here_are_refused():
    vocabulary = VisualVocabulary(100, 16, 6)
    with pytest.raises(ValueError, match="num_tokens 6"):
        vocabulary.to_tokens(torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="outside the codebook of 16"):
        vocabulary.to_tokens(torch.full((2, 6), 16))


def test_a_tokenizer_is_needed_with_a_model_object():
    with pytest.raises(ValueError, match="text_tokenizer is missing"):
        expand_vocabulary(backbone("tied", 300), codebook_size=8, num_tokens=4)


@pytest.mark.parametrize("settings", [{"num_tokens": 0}, {"visual_order": "random"}])
def test_impossible_vocabularies_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        VisualVocabulary(**{"text_size": 10, "codebook_size": 8, "num_tokens": 4, **settings})
