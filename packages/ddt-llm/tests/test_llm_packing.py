import pytest
import torch

from ddt_llm import Example, MultimodalLM, collate, collate_packed, expand_vocabulary, pack, token_loss


@pytest.mark.parametrize("seed", range(5))
def test_rows_hold_every_example_once_and_waste_little(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(10, 150, (64,), generator=generator).tolist()
    rows = pack([Example(torch.arange(n), torch.arange(n)) for n in lengths], 512)
    filled = [sum(len(example.input_ids) for example in row) for row in rows]
    assert sorted(len(example.input_ids) for row in rows for example in row) == sorted(lengths)
    assert max(filled) <= 512 and sum(filled) / (len(filled) * max(filled)) > 0.95
    assert pack([], 512) == []


def test_rows_as_long_as_the_longest_example_still_hold_all():
    rows = pack([Example(torch.arange(n), torch.arange(n)) for n in (5, 5, 5, 3, 3)], 6)
    assert [len(row) for row in rows] == [1, 1, 1, 2] or max(sum(len(e.input_ids) for e in row) for row in rows) <= 6
    with pytest.raises(ValueError, match="a packed row 4"):
        pack([Example(torch.arange(5), torch.arange(5))], 4)


def sequences_of(build, text_tokenizer, ids, attention):
    model, tokenizer = expand_vocabulary(build(len(text_tokenizer)), text_tokenizer, codebook_size=16, num_tokens=6)
    if attention == "eager":  # written out; most models have fused attention as their own
        model.set_attn_implementation(attention)
    with torch.no_grad():  # larger weights than at initialisation, so that what is seen matters
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    lm = MultimodalLM(model.eval(), tokenizer)
    make = lm.sequences
    return lm, [
        make.text_to_image("a red fox", ids[0]),
        make.instruction([ids[1], "what is it?"], ["a bell"]),
        make.text_only("two blue kites on a green ground"),
        make.image_to_text(ids[2], "a bell"),
        make.document(["a red fox", ids[0], "and a bell", ids[3]]),
    ]


@pytest.mark.parametrize("attention", ["its own", "eager"])
def test_packed_and_unpacked_agree(any_backbone, attention, text_tokenizer, ids):
    lm, examples = sequences_of(any_backbone, text_tokenizer, ids, attention)
    apart, packed = collate(examples, lm.sequences.pad), collate_packed(examples, lm.sequences.pad, row_length=60)
    assert packed["input_ids"].shape[0] < len(examples)
    one, other = (token_loss(lm.model, lm.vocabulary, **batch) for batch in (apart, packed))
    assert one.text_count == other.text_count and one.visual_count == other.visual_count
    torch.testing.assert_close(other.text_nats, one.text_nats, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(other.mean, one.mean, atol=1e-5, rtol=1e-5)
    gradients = []
    for loss in (one, other):
        lm.model.zero_grad()
        loss.mean.backward()
        gradients.append([parameter.grad.clone() for parameter in lm.model.parameters() if parameter.grad is not None])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)

    logits = lm.model(packed["input_ids"], position_ids=packed["position_ids"], use_cache=False).logits
    for row, tokens in zip(pack(examples, 60), logits, strict=True):
        for example in row:
            part, tokens = tokens[: len(example.input_ids)], tokens[len(example.input_ids) :]
            torch.testing.assert_close(part, lm.model(example.input_ids[None]).logits[0], atol=1e-5, rtol=1e-4)
