import copy

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ddt_llm import Sequences, VisualVocabulary, expand_vocabulary, remove_vocabulary
from ddt_llm.expansion import _draw_new_rows, unused_rows


@pytest.mark.parametrize("unused", [0, 5])
def test_any_backbone_keeps_its_text_and_can_be_restored(any_backbone, unused, text_tokenizer, tmp_path):
    rows = len(text_tokenizer) + unused
    model, tokens = any_backbone(rows), torch.randint(rows, (2, 9))
    before = model(tokens).logits
    original = copy.deepcopy(model)
    model, tokenizer = expand_vocabulary(model, text_tokenizer, codebook_size=12, num_tokens=4, multiple=16)
    torch.testing.assert_close(model(tokens).logits[..., :rows], before, atol=1e-6, rtol=0)
    assert VisualVocabulary.from_config(model.config) == VisualVocabulary(
        text_size=rows, codebook_size=12, num_tokens=4
    )
    assert model.get_input_embeddings().weight.shape[0] % 16 == 0 == model.get_output_embeddings().weight.shape[0] % 16
    assert tokenizer.convert_tokens_to_ids(["<v_0>", "<v_11>", "<boi>", "<eoi>"]) == [rows + i for i in (0, 11, 12, 13)]
    assert list(unused_rows(tokenizer).values()) == list(range(rows - unused, rows))

    # Plain transformers folders: equal without any code of ours. Two of them, because beside a Qwen2 config
    # transformers takes any tokenizer for Qwen2's own and adds the token that it expects of that.
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "text")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer_again = AutoTokenizer.from_pretrained(tmp_path / "text")
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert tokenizer_again.get_vocab() == tokenizer.get_vocab() and again.config.ddt == model.config.ddt

    for grown in ((model, tokenizer), (again, tokenizer_again)):
        restored, text = remove_vocabulary(*grown)
        assert restored.config.vocab_size == rows and not hasattr(restored.config, "ddt")
        state = restored.state_dict()
        assert state.keys() == original.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in original.state_dict().items())
        assert torch.equal(restored(tokens).logits, before)
        assert text.get_vocab() == text_tokenizer.get_vocab()
    assert remove_vocabulary(*expand_vocabulary(restored, text, codebook_size=3, num_tokens=2))[1]("<v_1>") == text(
        "<v_1>"
    )


@pytest.mark.parametrize("typed", ["<v_3>", "<v_12>", "see <boi><v_1><eoi>", "<unused_row_0>", "<bos> a <eos>"])
def test_what_a_user_types_never_becomes_a_visual_id(backbone, typed, text_tokenizer, tmp_path):
    model, tokenizer = expand_vocabulary(
        backbone("llama", len(text_tokenizer) + 2), text_tokenizer, codebook_size=16, num_tokens=4
    )
    tokenizer.save_pretrained(tmp_path)
    for some in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        tokens = Sequences(VisualVocabulary.from_config(model.config), some).encode_text(typed)
        assert max(tokens) < len(text_tokenizer) and some.decode(tokens) == typed


@pytest.mark.parametrize("kind", ["smollm2", "llama"])
def test_rows_from_a_codebook_keep_its_neighbourhoods_and_the_scale_of_the_text(backbone, kind, text_tokenizer):
    codebook = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    model, _ = expand_vocabulary(
        backbone(kind, len(text_tokenizer)),
        text_tokenizer,
        codebook_size=500,
        num_tokens=4,
        codebook=codebook,
        spread=1.0,
    )
    vocabulary = VisualVocabulary.from_config(model.config)
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        old, new = table[: vocabulary.text_size].detach(), table[vocabulary.visual].detach()
        torch.testing.assert_close(new.mean(0), old.mean(0), atol=1e-5, rtol=0)
        assert 0.4 < new.var(0).sum() / old.var(0).sum() < 2.5
        # A linear map: rows lie in a space of as many dimensions as the codebook has, and differences add up.
        assert torch.linalg.svdvals(new - new.mean(0))[3] < 1e-4
        solution = torch.linalg.lstsq(codebook - codebook.mean(0), new - new.mean(0)).solution
        torch.testing.assert_close((codebook - codebook.mean(0)) @ solution, new - new.mean(0), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="codebook has 500 vectors"):
        expand_vocabulary(
            backbone(kind, len(text_tokenizer)), text_tokenizer, codebook_size=8, num_tokens=4, codebook=codebook
        )


@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_new_rows_have_mean_and_covariance_of_the_old_ones(backbone, spread, text_tokenizer):
    model, _ = expand_vocabulary(
        backbone("smollm2", len(text_tokenizer)), text_tokenizer, codebook_size=20000, num_tokens=4
    )
    vocabulary, table = VisualVocabulary.from_config(model.config), model.get_input_embeddings().weight.data
    table[: vocabulary.text_size, 1] += table[: vocabulary.text_size, 0] + 0.1
    _draw_new_rows(model, vocabulary, None, spread, torch.Generator().manual_seed(0))
    old, new = table[: vocabulary.text_size], table[vocabulary.visual]
    torch.testing.assert_close(new.mean(0), old.mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(new.T.cov(), spread**2 * old.T.cov(correction=0), atol=5e-5, rtol=0)
    assert len(new.unique(dim=0)) == len(new)


def test_what_cannot_be_expanded_is_refused(backbone, text_tokenizer):
    model, tokenizer = expand_vocabulary(
        backbone("llama", len(text_tokenizer)), text_tokenizer, codebook_size=8, num_tokens=4
    )
    with pytest.raises(ValueError, match="visual vocabulary already"):
        expand_vocabulary(model, text_tokenizer, codebook_size=8, num_tokens=4)
    with pytest.raises(ValueError, match="visual vocabulary already"):
        expand_vocabulary(backbone("llama", 400), tokenizer, codebook_size=8, num_tokens=4)
    assert "<boi>" not in text_tokenizer.get_vocab()  # the caller's tokenizer is left alone
    with pytest.raises(ValueError, match="text_tokenizer is missing"):
        expand_vocabulary(backbone("llama", 300), codebook_size=8, num_tokens=4)
    with pytest.raises(ValueError, match="do not belong together"):
        expand_vocabulary(backbone("llama", 300), text_tokenizer, codebook_size=8, num_tokens=4)
    with pytest.raises(ValueError, match="no visual vocabulary"):
        remove_vocabulary(backbone("llama", 300), text_tokenizer)


def test_a_folder_is_expanded_by_its_name(backbone, tmp_path, text_tokenizer):
    backbone("mistral", len(text_tokenizer)).save_pretrained(tmp_path)
    text_tokenizer.save_pretrained(tmp_path)
    model, tokenizer = expand_vocabulary(tmp_path, codebook_size=8, num_tokens=4, visual_order="tokenizer")
    assert VisualVocabulary.from_config(model.config).visual_order == "tokenizer" and "<v_7>" in tokenizer.get_vocab()
    with pytest.raises(OSError, match="nowhere"):
        expand_vocabulary(tmp_path / "nowhere", codebook_size=8, num_tokens=4)


def test_a_model_of_llama_3_8b_expands_on_the_meta_device(text_tokenizer):
    """Shapes only, no memory: 128,256 + 65,536 + 2 rows, padded, in a model of 8 billion weights."""
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_key_value_heads=8
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert sum(weight.numel() for weight in model.parameters()) == 8_030_261_248
    model, _ = expand_vocabulary(model, text_tokenizer, codebook_size=65536, num_tokens=480, multiple=128)
    assert model.get_output_embeddings().weight.shape == model.get_input_embeddings().weight.shape == (193_920, 4096)
    assert VisualVocabulary.from_config(model.config).size == 193_794


def words(ids, added=()):
    """A tokenizer of whole words with the given ids, and tokens added to it."""
    tokenizer = Tokenizer(WordLevel({f"w{i}e": i for i in ids}, unk_token="w0e"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0e", eos_token="w1e")


@pytest.mark.parametrize("missing", [{5}, {2, 3, 4}, {18}])
@pytest.mark.parametrize("rows", [20, 64])
def test_a_tokenizer_with_holes_is_refused_before_the_model_is_touched(backbone, missing, rows):
    model = backbone("llama", rows)
    with pytest.raises(ValueError, match=rf"none of id {min(missing)}: .*holes"):
        expand_vocabulary(model, words(set(range(20)) - missing), codebook_size=8, num_tokens=4)
    assert model.get_input_embeddings().weight.shape[0] == rows and not hasattr(model.config, "ddt")


@pytest.mark.parametrize("rows", [22, 40])
def test_no_word_gets_the_name_of_an_unused_row(backbone, rows):
    text = words(range(20), added=["extra", "more"])
    _, tokenizer = expand_vocabulary(backbone("llama", rows), text, codebook_size=8, num_tokens=4)
    assert tokenizer.convert_ids_to_tokens(range(22)) == [*(f"w{i}e" for i in range(20)), "extra", "more"]
    assert list(unused_rows(tokenizer).values()) == list(range(22, rows))
    assert tokenizer.decode(tokenizer("w19e w7e extra").input_ids) == "w19e w7e extra"


@pytest.mark.parametrize("own", ["<v_3>", "<eoi>", "<unused_row_0>"])
def test_a_tokenizer_that_has_such_a_name_already_is_refused(backbone, own):
    with pytest.raises(ValueError, match=r"tokens of its own between"):
        expand_vocabulary(backbone("llama", 40), words(range(20), added=[own]), codebook_size=8, num_tokens=4)
    with pytest.raises(ValueError, match="do not belong together"):
        expand_vocabulary(backbone("llama", 20), words(range(20), added=[own]), codebook_size=8, num_tokens=4)
