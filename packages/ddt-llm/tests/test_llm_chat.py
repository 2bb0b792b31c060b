"""A saved folder in the hands of tools that know nothing of this package."""

import json
import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, pipeline

from ddt_llm import MultimodalLM, expand_vocabulary, remove_vocabulary

LETTERS = "aB 7.,:'\n\t!-é猫🦊"


def messages_of(turns, prompt=None):
    """Messages of chat tools for turns of `Sequences`."""
    sides = [side for question, answer in turns for side in (("user", question), ("assistant", answer))]
    sides += [] if prompt is None else [("user", prompt)]
    part = {True: lambda text: {"type": "text", "text": text}, False: lambda i: {"type": "image", "ids": i.tolist()}}
    return [{"role": role, "content": [part[isinstance(each, str)](each) for each in parts]} for role, parts in sides]


@pytest.fixture
def saved(tmp_path, make_lm):
    """A function that saves a random model and returns it with its tokenizer as transformers loads it."""

    def save(**settings):
        lm = make_lm(**settings)
        lm.save_pretrained(tmp_path / "lm")
        return lm, AutoTokenizer.from_pretrained(tmp_path / "lm")

    return save


@pytest.mark.parametrize("order", ["coarse_to_fine", "tokenizer", "shuffled-2"])
def test_the_chat_template_gives_the_ids_of_the_model(saved, ids, order):
    lm, tokenizer = saved(template="instruction", visual_order=order)
    draw = random.Random(0)

    def parts(first=""):
        texts = [first + "".join(draw.choices(LETTERS, k=draw.randint(1, 9))) for _ in range(2)]
        return draw.choice([texts[:1], [ids[0], texts[0]], [texts[0], ids[1], texts[1]], [ids[2]], [ids[3], ids[0]]])

    for _ in range(40):
        turns = [(parts(), parts("a")) for _ in range(draw.randint(0, 2))]  # an answer that begins with no space
        prompt = parts()
        told = tokenizer.apply_chat_template(messages_of(turns, prompt), add_generation_prompt=True, return_dict=False)
        assert told == lm.sequences.prompt(prompt, "instruction", turns)
        if turns:
            whole = tokenizer.apply_chat_template(messages_of(turns), return_dict=False)
            assert whole == lm.sequences.conversation(turns).input_ids.tolist()


def test_messages_of_text_hold_images_as_they_are_spelled(saved, ids):
    lm, tokenizer = saved(template="instruction")
    spell = lm.vocabulary.spell
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": spell(ids[0]) + " what is it?"},
        {"role": "assistant", "content": " a fox"},  # as a tool cuts it out of what the model wrote
        {"role": "user", "content": "draw it"},
        {"role": "assistant", "content": spell(ids[1])},
    ]
    told = tokenizer.apply_chat_template(messages, return_dict=False)
    turns = [(["Be brief.", ids[0], "what is it?"], ["a fox"]), (["draw it"], [ids[1]])]
    assert told == lm.sequences.conversation(turns).input_ids.tolist()
    assert torch.equal(lm.vocabulary.read(tokenizer.decode(told)), ids[:2])
    assert lm.vocabulary.read("<boi><v_3><eoi> no <boi>").shape == (0, 6)


def test_a_trainer_gets_the_labels_of_the_model(saved, ids):
    lm, tokenizer = saved(template="instruction")
    turns = [([ids[0], "what is it?"], ["a fox"]), (["draw it"], ["here", ids[1]])]
    # What TRL asks with assistant_only_loss=True.
    told = tokenizer.apply_chat_template(messages_of(turns), return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(told["input_ids"], told["assistant_masks"], strict=True)
    labels = [token if answer else -100 for token, answer in pairs]
    assert labels == lm.sequences.conversation(turns).labels.tolist()
    # And with a prompt and its completion: the first is a beginning of both.
    messages = messages_of(turns)
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert told["input_ids"][: len(prompt)] == prompt


def test_a_caption_model_takes_a_caption_or_an_image(saved, ids):
    lm, tokenizer = saved()
    for caption in ("a red fox", " a bell\n", "what <boi>"[:5]):
        told = tokenizer.apply_chat_template([{"role": "user", "content": caption}], return_dict=False)
        assert told == lm.sequences.prompt([caption], "caption") == tokenizer(caption).input_ids
    messages = messages_of([(["a red fox"], [ids[0]])])
    example = lm.sequences.text_to_image("a red fox", ids[0])
    assert tokenizer.apply_chat_template(messages, return_dict=False) == example.input_ids.tolist()
    with pytest.raises(Exception, match="tune it on instructions"):
        tokenizer.apply_chat_template(messages * 2)


def test_the_tokenizer_and_the_defaults_say_what_tools_ask(saved, tmp_path):
    lm, tokenizer = saved(template="instruction")
    assert tokenizer("a red fox").input_ids == [lm.sequences.bos, *lm.sequences.encode_text("a red fox")]
    assert tokenizer.model_max_length == 128 and tokenizer.padding_side == "left"
    defaults = AutoModelForCausalLM.from_pretrained(tmp_path / "lm").generation_config
    assert (defaults.eos_token_id, defaults.max_length, defaults.do_sample) == (lm.sequences.eos, 128, True)
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (1.0, 0, 1.0)
    assert defaults.suppress_tokens == lm.never
    assert lm.text_tokenizer.chat_template is None and not lm.text_tokenizer.add_bos_token  # a copy was changed


def test_the_plain_pipeline_writes_what_generate_writes(saved, tmp_path):
    lm, _ = saved(template="instruction")
    pipe = pipeline("text-generation", str(tmp_path / "lm"), device="cpu")
    messages = [{"role": "user", "content": "what colour is the fox?"}]
    (answer,) = pipe(messages, do_sample=False, max_new_tokens=8, return_full_text=False)
    # The model as it is, without our grammar.
    prompt = torch.tensor([lm.sequences.prompt(["what colour is the fox?"], "instruction")])
    tokens = prompt
    for _ in range(8):
        logits = lm.model(tokens).logits[:, -1]
        logits[:, lm.never] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
        if tokens[0, -1] == lm.sequences.eos:
            break
    assert answer["generated_text"] == lm.text_tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True)
    # Two texts at once, of which the shorter is padded on the left, are what they are alone.
    texts = ["a", "two blue kites on a green ground"]
    both = pipe(texts, do_sample=False, max_new_tokens=4, batch_size=2)
    assert both == [pipe([text], do_sample=False, max_new_tokens=4)[0] for text in texts]
    assert (
        len(pipe(messages, return_tensors=True)[0]["generated_token_ids"]) <= 128
    )  # sampled, to the end or the last position


def bytes_tokenizer(kind):
    """A byte-level tokenizer of 300 tokens without <bos> or <pad>."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|end|>": 0, **{letter: i + 1 for i, letter in enumerate(letters)}}
    merges = [("a", "b"), ("Ġ", "a")]
    vocab |= {"ab": len(vocab), "Ġa": len(vocab) + 1}
    if kind == "gpt2":
        return GPT2Tokenizer(vocab, merges, unk_token="<|end|>", bos_token=None, eos_token="<|end|>")
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", add_bos_token=False)


@pytest.mark.parametrize("kind", ["gpt2", "plain"])
def test_a_base_without_bos_and_with_a_template_of_its_own(tmp_path, backbone, ids, kind):
    base = bytes_tokenizer(kind)
    base.chat_template = "{{ messages[0].content }}"
    model, tokenizer = expand_vocabulary(backbone("llama", len(base)), base, codebook_size=16, num_tokens=6)
    lm = MultimodalLM(model, tokenizer, "instruction")
    lm.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("ab").input_ids == [lm.sequences.eos, *lm.sequences.encode_text("ab")]
    told = loaded.apply_chat_template(messages_of([], [ids[0], "ab"]), add_generation_prompt=True, return_dict=False)
    assert told == lm.sequences.prompt([ids[0], "ab"], "instruction") and told[0] == lm.sequences.eos
    again = MultimodalLM.from_pretrained(tmp_path)
    assert again.sequences.prompt(["ab"], "instruction") == lm.sequences.prompt(["ab"], "instruction")
    assert again.never == lm.never
    # In memory the base's own template is kept, for the day the vocabulary is taken off.
    assert remove_vocabulary(model, tokenizer)[1].chat_template == base.chat_template
    assert remove_vocabulary(again.model, again.text_tokenizer)[1].chat_template is None


def test_no_template_is_saved_that_would_give_other_ids(tmp_path, backbone, caplog):
    tokenizer = Tokenizer(models.BPE())
    spaces = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]  # LLaMA 2's: one before every piece
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.train_from_iterator(["USER: what ASSISTANT:"], trainers.BpeTrainer(special_tokens=["<s>", "</s>"]))
    base = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    lm = MultimodalLM(*expand_vocabulary(backbone("llama", len(base)), base, codebook_size=16, num_tokens=6))
    lm.template = "instruction"
    (tmp_path / "chat_template.jinja").write_text("of an earlier model")
    lm.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template is None and "no chat template" in caplog.text
    assert AutoTokenizer.from_pretrained(tmp_path)("what").input_ids[0] == lm.sequences.bos


def test_a_folder_of_before_loads(tmp_path, make_lm):
    lm = make_lm("instruction")
    lm.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    lm.text_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert MultimodalLM.from_pretrained(tmp_path).generate("a fox").text == lm.generate("a fox").text
