import pytest
import torch

from ddt_llm import collate, train_text_tokenizer


@pytest.mark.parametrize(
    "text", ["<v_3>", "see <boi><v_1><eoi>", "<bos>a fox<eos>", "<pad>", "naïve 猫 🦊\n\ttabs  and  spaces"]
)
def test_what_a_user_types_is_text_and_survives(make_lm, text):
    lm = make_lm()
    tokens = lm.sequences.encode_text(text)
    assert max(tokens) < lm.vocabulary.text_size
    assert not {lm.sequences.bos, lm.sequences.eos, lm.sequences.pad} & set(tokens)
    assert lm.text_tokenizer.decode(tokens) == text


def test_frequent_words_are_single_tokens(text_tokenizer):
    for word in (" fox", " bell", " ASSISTANT"):
        assert len(text_tokenizer(word, add_special_tokens=False).input_ids) == 1


def test_pretraining_layouts(make_lm, ids):
    sequences = make_lm().sequences
    boi, eoi, bos, eos = sequences.vocabulary.boi, sequences.vocabulary.eoi, sequences.bos, sequences.eos
    image, caption = sequences.vocabulary.to_tokens(ids[0]).tolist(), sequences.encode_text("a red fox")
    layouts = {
        "text_to_image": (sequences.text_to_image("a red fox", ids[0]), [bos, *caption, boi, *image, eoi, eos]),
        "image_to_text": (sequences.image_to_text(ids[0], "a red fox"), [bos, boi, *image, eoi, *caption, eos]),
        "image_only": (sequences.image_only(ids[0]), [bos, boi, *image, eoi, eos]),
        "empty caption": (sequences.text_to_image("", ids[0]), [bos, boi, *image, eoi, eos]),
        "text_only": (sequences.text_only("a red fox"), [bos, *caption, eos]),
    }
    for name, (example, expected) in layouts.items():
        assert example.input_ids.tolist() == expected, name
        assert torch.equal(example.labels, example.input_ids), name


def test_labels_cover_exactly_the_answer(make_lm, ids):
    sequences = make_lm("instruction").sequences
    example = sequences.instruction([ids[0], "make the fox blue"], ["here", ids[1]])
    prompt = sequences.prompt([ids[0], "make the fox blue"], "instruction")
    answer = [*sequences.encode_text(" here"), *sequences.encode_image(ids[1]), sequences.eos]
    assert example.input_ids.tolist() == prompt + answer
    assert example.labels.tolist() == [-100] * len(prompt) + answer
    spelled = sequences.text_tokenizer.decode(prompt)
    assert spelled.startswith("<bos>USER:<boi><v_") and spelled.endswith("<eoi> make the fox blue ASSISTANT:")


def test_a_caption_model_takes_one_part(make_lm, ids):
    with pytest.raises(ValueError, match="prompt has 2 parts"):
        make_lm().sequences.prompt([ids[0], "what is this?"], "caption")


def test_collate_pads_on_the_right_without_training_the_padding(make_lm, ids):
    sequences = make_lm().sequences
    examples = [sequences.text_only("a"), sequences.text_to_image("a red fox", ids[0])]
    batch = collate(examples, sequences.pad)
    short = len(examples[0].input_ids)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, len(examples[1].input_ids))
    assert (batch["input_ids"][0, short:] == sequences.pad).all() and (batch["labels"][0, short:] == -100).all()


def test_a_text_tokenizer_needs_texts_and_room():
    with pytest.raises(ValueError, match="texts is empty"):
        train_text_tokenizer([], 300)
    with pytest.raises(ValueError, match="vocab_size"):
        train_text_tokenizer(["a"], 100)


def test_a_conversation_trains_every_answer_and_nothing_else(make_lm, ids):
    sequences = make_lm("instruction").sequences
    turns = [
        ([ids[0], "what is it?"], ["a fox"]),
        (["make it blue"], [ids[1]]),
        (["and two"], [ids[2], "here", ids[3]]),
    ]
    example = sequences.conversation(turns)
    answers = []
    for turn in turns:
        alone = sequences.instruction(*turn)
        answers += alone.labels[alone.labels != -100].tolist()
    assert example.labels[example.labels != -100].tolist() == answers
    assert ((example.labels == example.input_ids) | (example.labels == -100)).all()
    # What the model reads before the last answer while generating is what it read in training.
    prompt = sequences.prompt(turns[-1][0], "instruction", history=turns[:-1])
    assert example.input_ids[: len(prompt)].tolist() == prompt
    assert sequences.conversation(turns[:1]).input_ids.tolist() == sequences.instruction(*turns[0]).input_ids.tolist()
    with pytest.raises(ValueError, match="caption"):
        sequences.prompt(["a fox"], "caption", history=turns[:1])


def test_a_document_holds_several_images(make_lm, ids):
    sequences = make_lm().sequences
    example = sequences.document([ids[0], "becomes", ids[1]])
    image = sequences.encode_image
    expected = [sequences.bos, *image(ids[0]), *sequences.encode_text("becomes"), *image(ids[1]), sequences.eos]
    assert example.input_ids.tolist() == example.labels.tolist() == expected


def shortened(sequences, parts, longest):
    """The slow way: one token at a time off the longest text, until all fits."""
    texts = [sequences.encode_text(part) for part in parts if isinstance(part, str)]
    images = sum(not isinstance(part, str) for part in parts) * sequences.vocabulary.image_length
    while 2 + images + sum(map(len, texts)) > longest:
        lengths = [len(text) for text in texts]
        texts[lengths.index(max(lengths))] = texts[lengths.index(max(lengths))][:-1]
    tokens = [sequences.bos]
    for part in parts:
        tokens += texts.pop(0) if isinstance(part, str) else sequences.encode_image(part)
    return [*tokens, sequences.eos]


@pytest.mark.parametrize("longest", [19, 25, 40, 1000])
def test_texts_that_are_too_long_lose_their_ends_and_images_nothing(make_lm, ids, longest):
    lm = make_lm(max_positions=longest)
    assert lm.sequences.longest == longest
    for parts in (["a red fox " * 40, ids[0]], [ids[0], "a bell " * 50], ["a bell", ids[0], "two kites " * 9]):
        example = lm.sequences.document(parts)
        assert example.input_ids.tolist() == shortened(lm.sequences, parts, longest)
        assert torch.equal(example.labels, example.input_ids)
    example = lm.sequences.text_only("a red fox " * 400)
    assert len(example.input_ids) == longest and lm.sequences.eos not in example.input_ids


def test_a_conversation_that_is_too_long_keeps_its_template_and_its_answers(make_lm, ids):
    long = make_lm("instruction", max_positions=4000).sequences
    turns = [([ids[0], "what is it? " * 60], ["a bell"]), (["make it blue " * 90], [ids[1]])]
    whole, fits = long.conversation(turns), make_lm("instruction", max_positions=90).sequences.conversation(turns)
    assert len(whole.input_ids) > 500 and len(fits.input_ids) == 90
    trained = [example.labels[example.labels != -100].tolist() for example in (whole, fits)]
    assert trained[0] == trained[1]
    spelled = long.text_tokenizer.decode(fits.input_ids)
    assert spelled.count("USER:") == spelled.count("ASSISTANT:") == spelled.count("<eoi>") == 2


def test_what_no_cut_makes_fit_is_refused_with_the_length_it_needs(make_lm, ids):
    for positions in (4, 10):  # K = 6: an image, a word and both ends are 11
        with pytest.raises(ValueError, match=rf"take 11 tokens, {positions} are the most: .*max_positions"):
            make_lm(max_positions=positions)
    sequences = make_lm(max_positions=18).sequences
    sequences.document([ids[0], ids[1]])
    with pytest.raises(ValueError, match="takes 19 tokens with one of its text, 18 are the most"):
        sequences.document([ids[0], "a bell", ids[1]])


@pytest.mark.parametrize("half", ["\udce9", "\ud83e", "\udd8a\ud83e"])
def test_halves_of_characters_are_replaced_in_training_and_refused_in_prompts(make_lm, half, ids):
    lm = make_lm("instruction")
    tokens = lm.sequences.encode_text(f"caf{half} \U0001f98a")
    assert lm.text_tokenizer.decode(tokens) == "caf" + "\ufffd" * len(half) + " \U0001f98a"
    assert len(lm.sequences.text_to_image(f"caf{half}", ids[0]).input_ids)
    train_text_tokenizer([f"caf{half}"], 300)
    for prompt in (f"caf{half}", [ids[0], f"caf{half}"]):
        with pytest.raises(ValueError, match="not valid Unicode") as caught:
            lm.generate(prompt)
        assert str(caught.value).isascii()
    assert lm.generate("caf\u00e9 \U0001f98a", max_text_tokens=2) and lm.generate("", max_text_tokens=2)
