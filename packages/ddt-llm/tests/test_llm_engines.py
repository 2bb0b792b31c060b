"""The grammar of images in engines of others, and models in their files."""

import importlib
import json
import sys
import tomllib
import urllib.request
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, pipeline

from ddt_llm import MultimodalLM, expand_vocabulary
from ddt_llm.gguf_file import image_grammar, write_gguf
from ddt_llm.image_blocks import ImageBlocks


def is_grammatical(lm, answer, output):
    """Whether an answer is texts and whole images; its end may cut one off."""
    vocabulary, left = lm.vocabulary, 0
    for token in answer:
        visual = vocabulary.visual.start <= token < vocabulary.visual.stop
        if (left > 1) != visual or (left == 1) != (token == vocabulary.eoi) or (not left and token in lm.never):
            return False
        left = vocabulary.num_tokens + 1 if token == vocabulary.boi else max(0, left - 1)
        if output == "text" and left:
            return False
    if output == "image":
        return answer[0] == vocabulary.boi and answer[-1] == lm.sequences.eos and len(answer) == 9
    return True


@pytest.mark.parametrize("output", ["auto", "image", "text"])
def test_transformers_writes_whole_images(make_lm, ids, output):
    lm = make_lm("instruction")
    with torch.no_grad():  # make images likely
        lm.model.get_input_embeddings().weight[lm.vocabulary.boi] *= 2
    prompt = torch.tensor([lm.sequences.prompt([ids[0], "what?"], "instruction")] * 20)
    length = prompt.shape[1]
    blocks = ImageBlocks(lm.vocabulary, lm.sequences.eos, lm.never, output, length)
    settings = {"do_sample": True, "max_new_tokens": 30, "pad_token_id": lm.sequences.pad, "top_k": 0}
    torch.manual_seed(0)
    written = lm.model.generate(prompt, logits_processor=[blocks], **settings)[:, length:].tolist()
    answers = [row[: row.index(lm.sequences.eos) + 1] if lm.sequences.eos in row else row for row in written]
    assert all(is_grammatical(lm, answer, output) for answer in answers)
    assert any(lm.vocabulary.boi in answer for answer in answers) == (output != "text")
    torch.manual_seed(0)
    wild = lm.model.generate(prompt, **settings)[:, length:].tolist()
    assert not all(is_grammatical(lm, answer, output) for answer in wild)  # without it they are not
    if output == "image":  # from the likeliest tokens, the picture that `generate` draws
        (best,) = lm.model.generate(prompt[:1], logits_processor=[blocks], do_sample=False, max_new_tokens=9)
        drawn = lm.generate([ids[0], "what?"], output="image", temperature=0).ids[0]
        assert torch.equal(lm.vocabulary.to_ids(best[length + 1 : -2]), drawn)


def test_numpy_rows_are_masked_as_tensors_are(make_lm, ids):
    lm = make_lm()
    blocks = ImageBlocks(lm.vocabulary, lm.sequences.eos, lm.never)
    tokens = lm.sequences.text_to_image("a fox", ids[0]).input_ids
    scores = torch.randn(lm.vocabulary.size)
    for length in range(1, len(tokens)):
        row = blocks(tokens[:length].numpy(), scores.numpy())
        assert np.array_equal(row, blocks(tokens[None, :length], scores[None])[0].numpy())
        assert np.isfinite(row[tokens[length]])  # what was written could be written


@pytest.fixture
def vllm(monkeypatch):
    """What vLLM 0.33 documents of `AdapterLogitsProcessor`, as little as it is: rows, and who is in them."""

    class AdapterLogitsProcessor:
        def __init__(self, vllm_config, device, is_pin_memory):
            self.req_info = {}

        def update_state(self, update):
            for index in update.removed:
                self.req_info.pop(index, None)
            for index, params, prompt_ids, output_ids in update.added:
                request = self.new_req_logits_processor(params)
                self.req_info.pop(index, None)
                if request is not None:
                    self.req_info[index] = partial(request, prompt_ids, output_ids)

        def apply(self, logits):
            for index, request in self.req_info.items():
                logits[index] = request(logits[index])
            return logits

    names = ["vllm", "vllm.v1", "vllm.v1.sample", "vllm.v1.sample.logits_processor"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].AdapterLogitsProcessor = AdapterLogitsProcessor
    yield
    sys.modules.pop("ddt_llm.vllm_plugin", None)


def test_vllm_masks_each_request_by_what_it_asks(make_lm, tmp_path, vllm):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["vllm.logits_processors"]["ddt"].partition(":")
    plugin = getattr(importlib.import_module(module), name)
    lm = make_lm("instruction")
    lm.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    config = SimpleNamespace(hf_config=model.config, try_get_generation_config=model.generation_config.to_diff_dict)
    processor = plugin(SimpleNamespace(model_config=config), torch.device("cpu"), False)
    assert not processor.is_argmax_invariant()

    # Three requests in one batch, which ask for different things; the lists of their tokens grow.
    prompt = lm.sequences.prompt(["a fox"], "instruction")
    asked = [SimpleNamespace(extra_args=extra) for extra in (None, {"ddt_output": "image"}, {"ddt_output": "text"})]
    answers = [[], [], []]
    added = [(i, params, prompt, answers[i]) for i, params in enumerate(asked)]
    processor.update_state(SimpleNamespace(removed=[], added=added))
    generator = torch.Generator().manual_seed(0)
    for _ in range(9):
        logits = processor.apply(torch.randn(3, lm.vocabulary.size, generator=generator))
        for answer, token in zip(answers, logits.argmax(-1).tolist(), strict=True):
            answer.append(token)
    for answer, output in zip(answers, ("auto", "image", "text"), strict=True):
        assert is_grammatical(lm, answer, output)
    with pytest.raises(ValueError, match="output"):
        plugin.validate_params(SimpleNamespace(extra_args={"ddt_output": "picture"}))

    # A model of others is left alone.
    config.hf_config = LlamaConfig()
    other = plugin(SimpleNamespace(model_config=config), torch.device("cpu"), False)
    assert other.new_req_logits_processor(asked[0]) is None


@pytest.fixture(scope="module")
def served(tmp_path_factory, text_tokenizer):
    """A function that writes a model as GGUF and serves it with llama.cpp: the model, and what posts to the server."""
    pytest.importorskip("gguf", reason="needs the extra gguf")
    engine = pytest.importorskip("xllamacpp", reason="needs xllamacpp, llama.cpp as a wheel")
    servers = []

    def serve(kind, **sizes):
        torch.manual_seed(0)
        small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        small |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2}
        base = LlamaForCausalLM(LlamaConfig(**small | sizes, vocab_size=len(text_tokenizer)))
        parts = expand_vocabulary(base, text_tokenizer, codebook_size=16, num_tokens=6, multiple=64)
        lm = MultimodalLM(*parts, "instruction")
        file = tmp_path_factory.mktemp("gguf") / "lm.gguf"
        write_gguf(lm, file, kind)
        params = engine.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(file), 128, 1, False
        params.special, params.verbosity, params.cpuparams.n_threads = True, 0, 1
        servers.append(server := engine.Server(params))

        def post(path, **body):
            head = {"Content-Type": "application/json"}
            request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), head)
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)

        return lm, post, file

    return serve


def test_llama_cpp_reads_writes_and_draws_as_the_model_does(served, tmp_path, ids):
    lm, post, _ = served("f32")

    # Texts, with an image in one, are the same tokens; `<bos>` comes first; messages are spelled the same.
    text = "USER:" + lm.vocabulary.spell(ids[0]) + " what is it's caf\u00e9, 12 foxes?\n\n ASSISTANT:"
    told = post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
    assert told == [lm.sequences.bos, *lm.text_tokenizer(text, add_special_tokens=False).input_ids]
    lm.save_pretrained(tmp_path)
    turns = ["Be brief.", "what is it?", "a fox", "draw it"]
    roles = ["system", "user", "assistant", "user"]
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    template = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template
    spelled = template(messages, add_generation_prompt=True, tokenize=False)
    assert "<bos>" + post("/apply-template", messages=messages)["prompt"] == spelled

    # The same predictions, to what its half-precision cache loses.
    prompt = lm.sequences.prompt([ids[0], "what is it?"], "instruction")
    drawing = {"prompt": prompt, "n_predict": 20, "return_tokens": True, "grammar": image_grammar(lm.vocabulary)}
    answer = post("/completion", temperature=0, n_probs=5, **drawing)
    wanted = lm.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    for top in answer["completion_probabilities"][0]["top_logprobs"]:
        assert top["logprob"] == pytest.approx(wanted[top["id"]].item(), abs=0.02)

    # Its sampler, held by the grammar, draws images: the likeliest one is ours, others are whole.
    best = answer["tokens"]
    ours = lm.generate([ids[0], "what is it?"], output="image", temperature=0).ids
    assert torch.equal(lm.vocabulary.to_ids(torch.tensor([best[1:7]])), ours)
    seen = set()
    for seed in range(4):
        tokens = post("/completion", temperature=1.5, seed=seed, **drawing)
        assert is_grammatical(lm, tokens["tokens"], "image")
        assert len(lm.vocabulary.read(tokens["content"])) == 1  # as text, too
        seen.add(tuple(tokens["tokens"]))
    assert len(seen) > 1

    # The same without a grammar, as docs/exports.md has it for large codebooks: all but visual tokens are banned.
    vocabulary, visual = lm.vocabulary, lm.vocabulary.visual
    rows = lm.model.get_input_embeddings().weight.shape[0]
    banned = [[token, False] for token in range(rows) if not visual.start <= token < visual.stop]
    begun = {"prompt": [*prompt, vocabulary.boi], "n_predict": vocabulary.num_tokens, "return_tokens": True}
    tokens = post("/completion", temperature=0, logit_bias=banned, **begun)["tokens"]
    assert torch.equal(vocabulary.to_ids(torch.tensor([tokens])), ours)


def test_llama_cpp_takes_weights_of_eight_and_four_bits(served):
    sizes = {}
    for kind in ("f16", "q8_0", "q4_0"):
        lm, post, file = served(kind, tie_word_embeddings=True)
        sizes[kind] = file.stat().st_size
        prompt = lm.sequences.prompt(["a fox"], "instruction")
        answer = post("/completion", prompt=prompt, n_probs=3, grammar=image_grammar(lm.vocabulary))
        wanted = lm.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        near = {"f16": 0.02, "q8_0": 0.2, "q4_0": 2.0}[kind]
        for top in answer["completion_probabilities"][0]["top_logprobs"]:
            assert top["logprob"] == pytest.approx(wanted[top["id"]].item(), abs=near)
    assert sizes["f16"] > sizes["q8_0"] > sizes["q4_0"]


def test_a_model_that_llama_cpp_would_misread_is_refused(tmp_path, make_lm, backbone, text_tokenizer):
    pytest.importorskip("gguf", reason="needs the extra gguf")
    with pytest.raises(ValueError, match=r"kind \(q8_0\) has blocks of 32"):
        write_gguf(make_lm(width=48), tmp_path / "lm.gguf", "q8_0")
    qwen = backbone("qwen2", len(text_tokenizer))
    lm = MultimodalLM(*expand_vocabulary(qwen, text_tokenizer, codebook_size=16, num_tokens=6))
    with pytest.raises(ValueError, match=r"backbone \(qwen2\) must be a LLaMA"):
        write_gguf(lm, tmp_path / "lm.gguf")
    lm = make_lm()
    lm.model.config.rope_parameters["rope_type"] = "llama3"
    with pytest.raises(ValueError, match=r"rope_type \(llama3\) must be default"):
        write_gguf(lm, tmp_path / "lm.gguf")
    with pytest.raises(ValueError, match=r"kind \('q2'\) must be f32"):
        write_gguf(make_lm(), tmp_path / "lm.gguf", "q2")
    assert not list(tmp_path.iterdir())


def test_llama_cpp_python_writes_texts_and_draws_by_its_sampler(make_lm, tmp_path):
    """Skipped where it is not: it has no wheels, and is built in three quarters of an hour."""
    pytest.importorskip("gguf", reason="needs the extra gguf")
    engine = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    lm = make_lm("instruction")
    write_gguf(lm, tmp_path / "lm.gguf", "f32")
    llama = engine.Llama(str(tmp_path / "lm.gguf"), n_ctx=256, n_threads=1, verbose=False)

    def written(prompt, count, **how):
        return list(islice(llama.generate(prompt, **how), count))

    asked = lm.sequences.prompt(["what is it?"], "instruction")
    tokens = torch.tensor([asked])
    for _ in range(6):
        tokens = torch.cat([tokens, lm.model(tokens).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert written(asked, 6, temp=0.0) == tokens[0, len(asked) :].tolist()
    prompt = lm.sequences.prompt(["a fox"], "instruction")
    blocks = ImageBlocks(lm.vocabulary, lm.sequences.eos, lm.never, "image", len(prompt))
    held = {"logits_processor": engine.LogitsProcessorList([blocks])}
    best, ours = written(prompt, 7, temp=0.0, **held), lm.generate("a fox", output="image", temperature=0).ids
    assert torch.equal(lm.vocabulary.to_ids(torch.tensor([best[1:7]])), ours)
    drawn = written(prompt, 9, temp=1.2, top_k=0, top_p=1.0, min_p=0.0, **held)
    assert is_grammatical(lm, drawn, "image")


def test_a_pipeline_of_transformers_takes_the_grammar(make_lm, tmp_path):
    lm = make_lm("instruction")
    lm.save_pretrained(tmp_path)
    pipe = pipeline("text-generation", str(tmp_path), device="cpu")
    length = len(lm.sequences.prompt(["a fox"], "instruction"))
    blocks = ImageBlocks(lm.vocabulary, lm.sequences.eos, lm.never, "image", length)
    ask = [{"role": "user", "content": "a fox"}]
    (answer,) = pipe(ask, logits_processor=[blocks], skip_special_tokens=False, return_full_text=False)
    assert len(lm.vocabulary.read(answer["generated_text"])) == 1 and answer["generated_text"].startswith("<boi>")
