"""Tiny random models of many architectures: each trains, packs and writes as it does by itself, or is refused."""

import pytest
import torch
import transformers as tf

from ddt_llm import MultimodalLM, collate, collate_packed, expand_vocabulary, token_loss
from ddt_llm.attention import attend_by_device
from ddt_llm.head import head_logits
from ddt_llm.network import quickest_network
from ddt_llm.self_test import check_packing

IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
BERT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **IDS}
LLAMA = {**BERT, "num_key_value_heads": 1, "max_position_embeddings": 96}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96}
OPT = {**BERT, "word_embed_proj_dim": 16, "ffn_dim": 32, "max_position_embeddings": 96}
FALCON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 96}
NEO = {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
HEADS = {"head_dim": 8}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
H1 = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
GRIFFIN = {
    "lru_width": 16,
    "attention_window_size": 4,
    "logits_soft_cap": 2.0,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
}

# Class of the model, its config, whether it packs, and how it is read step by step (None: it is refused).
KINDS = {
    "llama": ("Llama", LLAMA, True, "LlamaNetwork"),
    "gpt2": ("GPT2", GPT2, True, "CachedNetwork"),
    "gpt_neox": ("GPTNeoX", {**BERT, "max_position_embeddings": 96}, True, "CachedNetwork"),
    "glm": ("Glm", {**LLAMA, **HEADS}, True, "CachedNetwork"),
    "granite": ("Granite", {**LLAMA, "logits_scaling": 3.0}, True, "CachedNetwork"),
    "gemma2": (
        "Gemma2",
        {**LLAMA, **HEADS, "sliding_window": 4, "final_logit_softcapping": 2.0},
        True,
        "CachedNetwork",
    ),
    "cohere": ("Cohere", {**LLAMA, "logit_scale": 0.3}, True, "CachedNetwork"),
    "mixtral": ("Mixtral", {**LLAMA, **EXPERTS}, True, "CachedNetwork"),
    "gpt_neo": ("GPTNeo", {**NEO, "hidden_size": 16, "max_position_embeddings": 96}, True, "GrowingNetwork"),
    "opt": ("OPT", OPT, False, "CachedNetwork"),
    "falcon": ("Falcon", FALCON, False, "CachedNetwork"),
    "falcon with alibi": ("Falcon", {**FALCON, "alibi": True}, False, "GrowingNetwork"),
    "bloom": ("Bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2}, False, "GrowingNetwork"),
    "mpt": ("Mpt", {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 96}, False, "CachedNetwork"),
    "gpt_oss": ("GptOss", {**LLAMA, **HEADS, **EXPERTS, **MIXED}, False, "CachedNetwork"),
    "falcon_h1": ("FalconH1", {**LLAMA, **H1, "lm_head_multiplier": 0.3}, False, "CachedNetwork"),
    "recurrent_gemma": ("RecurrentGemma", {**BERT, **GRIFFIN}, False, "UncachedNetwork"),
    "mamba": ("Mamba", MAMBA, False, "UncachedNetwork"),
    "bert": ("Bert", {**BERT, "is_decoder": True}, False, None),
    "electra": ("Electra", {**BERT, "embedding_size": 8, "is_decoder": True}, False, None),
    "xlnet": ("XLNet", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}, False, None),
}
HEADS_OF = {"gpt2": "LMHeadModel", "bert": "LMHeadModel", "xlnet": "LMHeadModel"}
CAPTIONS = ("a red fox left of a bell", "two blue kites", "a bell")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def build(text_tokenizer):
    def build(kind):
        name, config, *_ = KINDS[kind]
        torch.manual_seed(0)
        config = getattr(tf, f"{name}Config")(vocab_size=len(text_tokenizer), **config)
        model = getattr(tf, name + HEADS_OF.get(kind, "ForCausalLM"))(config).eval()
        with torch.no_grad():  # larger weights than at initialisation, so that predictions differ clearly
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(3)
        return model

    return build


@pytest.fixture
def lm_of(build, text_tokenizer):
    def make(kind):
        return MultimodalLM(*expand_vocabulary(build(kind), text_tokenizer, codebook_size=16, num_tokens=6))

    return make


def losses(lm, batch):
    loss = token_loss(lm.model, lm.vocabulary, **batch)
    return torch.stack([loss.text_nats, loss.visual_nats])


def greedy(lm, prompt):
    """One image, by whole passes of the transformers model."""
    tokens = [*lm.sequences.prompt([prompt], "caption"), lm.vocabulary.boi]
    for _ in range(6):
        logits = lm.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(lm.vocabulary.text_size + int(logits[lm.vocabulary.visual].argmax()))
    return lm.vocabulary.to_ids(torch.tensor(tokens[-6:]))


def test_it_trains_packs_and_writes_as_it_does_by_itself_or_is_refused(kind, build, lm_of, text_tokenizer, ids):
    _, _, packs, network = KINDS[kind]
    if network is None:
        with pytest.raises(ValueError, match=r"cannot be the backbone: .*(head|come later)"):
            lm_of(kind)
        return
    lm = lm_of(kind)
    examples = [lm.sequences.text_to_image(*pair) for pair in zip(CAPTIONS, ids[:3], strict=True)]
    padded = collate(examples, lm.sequences.pad)
    packed = collate_packed(examples, lm.sequences.pad, row_length=60)
    with torch.no_grad():
        # Its own loss, by transformers.
        own = [lm.model(input_ids=e.input_ids[None], labels=e.labels[None], use_cache=False).loss for e in examples]
        counts = torch.tensor([len(example.labels) - 1 for example in examples])
        before = losses(lm, padded)
        torch.testing.assert_close(before.sum(), (torch.stack(own) * counts).sum(), rtol=1e-4, atol=1e-3)
        if packs:
            torch.testing.assert_close(losses(lm, packed), before, rtol=1e-4, atol=1e-3)
        else:
            with pytest.raises(ValueError, match=r"cannot train on packed rows.*row_length=0"):
                losses(lm, packed)
            with pytest.raises(ValueError, match="row_length=0"):
                check_packing(lm.model)
        # Prompts of different lengths in one batch, with and without the padding that guidance brings.
        answers = lm.generate_batch(CAPTIONS, temperature=0)
        assert all(torch.equal(a.ids[0], greedy(lm, text)) for a, text in zip(answers, CAPTIONS, strict=True))
        assert torch.equal(lm.generate(CAPTIONS[1], temperature=0).ids[0], answers[1].ids[0])
        assert quickest_network(lm.model).__name__ == network

    optimizer = torch.optim.SGD(lm.model.parameters(), lr=1e-3)
    lm.model.train()
    losses(lm, padded).sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert losses(lm, padded).sum() < before.sum()


@pytest.mark.parametrize("kind", [kind for kind, (_, _, packs, _) in KINDS.items() if packs])
def test_attention_written_out_is_that_of_the_fused_kernel(kind, lm_of, ids, monkeypatch):
    """As it is on a CPU in bf16, here in float32, where rounding hides nothing: grouped heads, windows, packed rows."""
    lm, written = lm_of(kind), []
    examples = [lm.sequences.text_to_image(*pair) for pair in zip(CAPTIONS, ids[:3], strict=True)]
    batches = [collate(examples, lm.sequences.pad), collate_packed(examples, lm.sequences.pad, row_length=60)]

    def found():
        lm.model.zero_grad()
        all_losses = torch.stack([losses(lm, batch) for batch in batches])
        all_losses.sum().backward()
        return all_losses.detach(), [p.grad.clone() for p in lm.model.parameters() if p.grad is not None]

    (fused, fused_gradients), fused_attention = found(), lm.model.config._attn_implementation
    attend_by_device(lm.model)
    same, same_gradients = found()
    assert torch.equal(same, fused) and all(map(torch.equal, same_gradients, fused_gradients))

    def written_out(q, k):
        written.append(q.shape)
        return True

    monkeypatch.setattr("ddt_llm.attention.better_written_out", written_out)
    monkeypatch.setattr("ddt_llm.attend.better_written_out", written_out)
    monkeypatch.setattr("ddt_llm.attend.PART", 100)
    torch.testing.assert_close(found(), (fused, fused_gradients), rtol=1e-4, atol=1e-4)
    assert bool(written) == (fused_attention == "sdpa")


def test_a_chosen_attention_stays_and_none_is_saved(build, tmp_path):
    eager, fused = build("llama"), build("llama")
    eager.set_attn_implementation("eager")
    for model in (eager, fused):
        attend_by_device(model)
    assert (eager.config._attn_implementation, fused.config._attn_implementation) == ("eager", "ddt")
    fused.save_pretrained(tmp_path)
    assert "ddt" not in (tmp_path / "config.json").read_text()


def test_in_bf16_it_is_read_as_in_float32_and_keeps_the_grammar(kind, lm_of, tmp_path):
    *_, network = KINDS[kind]
    if network is None:
        return
    lm = lm_of(kind)
    lm.save_pretrained(tmp_path)
    rounded = MultimodalLM.from_pretrained(tmp_path, precision="bf16")
    assert {weight.dtype for weight in rounded.model.parameters()} == {torch.bfloat16}
    kinds, own = ([each.dtype for each in model.buffers()] for model in (rounded.model, lm.model))
    assert kinds == own  # rounding the angles of positions would turn far ones by radians
    assert quickest_network(rounded.model).__name__ == network
    answers = rounded.generate_batch(CAPTIONS, temperature=0)
    assert all(answer.ids.shape == (1, 6) and answer.ids.dtype == torch.int64 for answer in answers)
    assert all(answer.ids.min() >= 0 and answer.ids.max() < 16 for answer in answers)


def test_a_self_test_leaves_no_trace(lm_of):
    """Random numbers, modes and gradients are as before, and what was found is not measured again."""
    lm, calls = lm_of("gpt2"), []
    lm.model.train()
    lm.model.transformer.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    check_packing(lm.model)
    assert quickest_network(lm.model).__name__ == "CachedNetwork" and calls
    assert torch.equal(torch.get_rng_state(), state) and lm.model.training
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    calls.clear()
    check_packing(lm.model), quickest_network(lm.model)
    assert not calls


def test_a_head_that_nobody_knows_is_refused(build, text_tokenizer):
    model = build("llama")
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: forward(hidden) * 1.01 + 0.1 * hidden.mean(-1, keepdim=True)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM cannot be the backbone: .*linear head"):
        expand_vocabulary(model, text_tokenizer, codebook_size=16, num_tokens=6)
    hidden = torch.randn(3, 16)
    assert not torch.allclose(head_logits(model, hidden), model.lm_head(hidden))


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neo", "mamba", "llama"])
def test_a_row_that_has_ended_does_not_matter_to_one_that_goes_on(kind, lm_of):
    """The long prompt ends at the last position, while the short one is written far beyond."""
    lm = lm_of(kind)
    prompts = ["a" * 200, "a bell"]
    while len(lm.sequences.prompt(prompts[:1], "caption")) > 80:
        prompts[0] = prompts[0][1:]
    settings = {"output": "text", "text_temperature": 0, "max_text_tokens": 80}
    with torch.no_grad():  # so that no answer ends by itself
        lm.model.get_output_embeddings().weight[lm.sequences.eos] = 0
    together = lm.generate_batch(prompts, **settings)
    assert [answer.text for answer in together] == [lm.generate(prompt, **settings).text for prompt in prompts]


@pytest.mark.parametrize("kind", ["bloom", "mamba", "recurrent_gemma"])
def test_a_model_without_a_limit_of_positions_has_none(kind, lm_of, ids):
    lm = lm_of(kind)
    assert lm.sequences.longest is None
    caption = "a red fox left of a bell " * 30
    assert len(lm.sequences.text_to_image(caption, ids[0]).input_ids) > 200
    assert lm.generate(caption, temperature=0).ids.shape == (1, 6)
