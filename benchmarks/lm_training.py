"""Training a LLaMA: `ddt_llm` under Lightning against the Trainer of transformers and against litgpt, the same batches.

pip install accelerate litgpt   (litgpt is optional: with --no-deps it installs beside any torch)
python benchmarks/lm_training.py [3M] [small] [20M] [sft] [losses] [precision=bf16] [rounds=5] [steps=1] [compile=on]

Weights are tied, AdamW is fused, gradients are clipped to 1.0, and all positions are trained, on one thread in float32
or bf16-mixed. The three take turns, a step to warm up and `steps` that count; printed is the CPU time of the others
over ours. Above 1 ours is quicker. `sft` does the same for examples of small/sft, which ours packs into rows and the
Trainer pads: CPU time for equal examples. `losses` trains ours and the Trainer for 50 steps from equal weights in
float32 and prints the largest difference. A part takes one or two minutes; without names 3M and losses run.
`compile=on` adds ours and the Trainer compiled, ours block by block as `ddt` does by itself in long runs.
"""

import random
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import lightning
import torch
import transformers
from compile_step import compiled
from pairs import settings, take_turns
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

from ddt_apps.run.fitting import quiet_lightning
from ddt_apps.run.nan_guard import NaNGuard
from ddt_data import SceneConfig, SceneGenerator, make_sample
from ddt_llm import MultimodalLM, Sequences, collate, collate_packed, expand_vocabulary, train_text_tokenizer
from ddt_llm.optimizer import OptimizerConfig
from ddt_llm.throughput import Throughput
from ddt_llm.training import LanguageModelTraining

# Width, depth, heads, rows of text, codes; "small" is the model of small/pretrain with 8,192 codes.
SIZES = {"3M": (256, 4, 4, 1024, 512), "small": (256, 4, 4, 1024, 8192), "20M": (384, 8, 6, 8704, 8192)}
SHAPE = {"3M": (32, 192), "small": (32, 192), "20M": (8, 256)}  # rows, tokens
K = 64
RECIPE = {"lr": 1e-3, "warmup_steps": 0, "weight_decay": 0.0, "betas": (0.9, 0.95)}
Batches = list[dict[str, Tensor]]


class Clock:
    """CPU time of all steps but the first, which warms up."""

    def __init__(self):
        self.count, self.begin, self.end = 0, 0.0, 0.0

    def tick(self) -> None:
        """Note the end of a step."""
        self.count += 1
        self.end = time.process_time()
        self.begin = self.end if self.count == 1 else self.begin

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def build(size: str) -> MultimodalLM:
    """A random LLaMA with tied embeddings and a visual vocabulary."""
    width, depth, heads, rows, codes = SIZES[size]
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=32 * round(width * 8 / 3 / 32),
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    text = train_text_tokenizer([make_sample(scenes(), i)["text"] for i in range(200)], 1024)
    model, text = expand_vocabulary(LlamaForCausalLM(config), text, codebook_size=codes, num_tokens=K)
    return MultimodalLM(model.train(), text)


def scenes() -> SceneGenerator:
    return SceneGenerator(SceneConfig(), seed=0)


def train_ddt(lm: MultimodalLM, batches: Batches, precision: str, compile: bool = False) -> tuple[float, list[float]]:
    """As `Run.fit` does, with what watches a run."""
    clock, losses = Clock(), []
    module = LanguageModelTraining(lm.model, ConstantRate(steps=len(batches), **RECIPE))
    if compile:
        compiled(module.networks)
    torch.compiler.set_stance("default" if compile else "force_eager")

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())
            clock.tick()

    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        guard = NaNGuard(Path(folder, "last.ckpt"), lambda trainer: None)
        lightning.Trainer(
            accelerator="cpu",
            devices=1,
            precision={"fp32": "32-true", "bf16": "bf16-mixed"}[precision],
            max_steps=len(batches),
            max_epochs=-1,
            gradient_clip_val=1.0,
            callbacks=[guard, Throughput(Path(folder, "throughput.csv"), 50), Watch()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, torch.utils.data.DataLoader(InOrder(batches), batch_size=None))
    return clock.seconds, losses


class ConstantRate(OptimizerConfig):
    def factor(self, step: int) -> float:
        return 1.0


def train_hf(lm: MultimodalLM, batches: Batches, precision: str, compile: bool = False) -> tuple[float, list[float]]:
    """By the Trainer of transformers, with the attention that it comes with, from batches that are ready."""
    clock, losses = Clock(), []
    lm.model.set_attn_implementation("sdpa")  # its own; training with ddt puts another in
    torch.compiler.set_stance("default" if compile else "force_eager")

    class Watch(TrainerCallback):
        def on_step_end(self, *args, **options):
            clock.tick()

        def on_log(self, args, state, control, logs, **options):
            losses.extend([logs["loss"]] if "loss" in logs else [])

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(batches),
            per_device_train_batch_size=1,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            adam_beta2=0.95,
            max_grad_norm=1.0,
            bf16=precision == "bf16",
            use_cpu=True,
            torch_compile=compile,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        quiet = transformers.Trainer(
            lm.model, arguments, train_dataset=InOrder(batches), data_collator=lambda some: some[0], callbacks=[Watch()]
        )
        quiet.remove_callback(transformers.PrinterCallback)
        quiet._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(batches)
        quiet.train()
    return clock.seconds, losses


class InOrder(torch.utils.data.Dataset):
    def __init__(self, batches: Batches):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.batches[index]


def train_litgpt(lm: MultimodalLM, batches: Batches, precision: str) -> tuple[float, list[float]]:
    """By litgpt's model and loss, in the loop of its pretraining."""
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    clock, losses, theirs = Clock(), [], lm.model.config
    config = Config(
        block_size=1024,
        padded_vocab_size=theirs.vocab_size,
        n_layer=theirs.num_hidden_layers,
        n_head=theirs.num_attention_heads,
        n_embd=theirs.hidden_size,
        intermediate_size=theirs.intermediate_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    fabric = lightning.Fabric(accelerator="cpu", precision={"fp32": "32-true", "bf16": "bf16-mixed"}[precision])
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), weight_decay=0.0, fused=True)
    model, optimizer = fabric.setup(model, optimizer)
    for batch in batches:
        logits = model(batch["input_ids"][:, :-1])
        loss = chunked_cross_entropy(logits, batch["labels"][:, 1:])
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        clock.tick()
    return clock.seconds, losses


def full_rows(lm: MultimodalLM, size: str, steps: int) -> Batches:
    rows = torch.randint(len(lm.text_tokenizer), (steps, *SHAPE[size]), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in rows]


def compare(size: str, precision: str, rounds: int, steps: int, compile: str) -> None:
    """Full rows, every position trained: what a token costs."""
    lm = build(size)
    batches = full_rows(lm, size, steps + 1)
    ways = {
        "ddt": lambda: train_ddt(lm, batches, precision)[0],
        "HF Trainer": lambda: train_hf(lm, batches, precision)[0],
    }
    if find_spec("litgpt"):
        ways["litgpt"] = lambda: train_litgpt(lm, batches, precision)[0]
    if compile == "on":  # last, since blocks of a model that was compiled stay so
        ways["ddt, compiled"] = lambda: train_ddt(lm, batches, precision, compile=True)[0]
        ways["HF Trainer, compiled"] = lambda: train_hf(build(size), batches, precision, compile=True)[0]
    (rows, length), million = SHAPE[size], sum(weight.numel() for weight in lm.model.parameters()) / 1e6
    take_turns(f"{million:.2f} M, {precision}, {steps} steps of {rows} x {length}", ways, rounds)


def compare_sft(precision: str, rounds: int, steps: int, **_: str) -> None:
    """Examples of the mix of small/sft: packed here, padded there."""
    lm, rng = build("small"), random.Random(0)
    examples = [instruction(lm.sequences, make_sample(scenes(), i), rng) for i in range(48 * (steps + 1))]
    groups = [examples[i : i + 48] for i in range(0, len(examples), 48)]
    packed = [collate_packed(group, lm.sequences.pad, row_length=512) for group in groups]
    padded = [collate(group, lm.sequences.pad) for group in groups]
    whole = [batch["input_ids"].numel() for batch in (*packed, *padded)]
    print(f"tokens, padding included: {sum(whole[: len(groups)]):,} packed, {sum(whole[len(groups) :]):,} padded")
    ways = {
        "ddt, packed": lambda: train_ddt(lm, packed, precision)[0],
        "ddt, padded": lambda: train_ddt(lm, padded, precision)[0],
        "HF Trainer, padded": lambda: train_hf(lm, [masked(batch, lm.sequences.pad) for batch in padded], precision)[0],
    }
    take_turns(f"48 examples of small/sft a step, {precision}", ways, rounds)


def masked(batch: dict[str, Tensor], pad: int) -> dict[str, Tensor]:
    return {**batch, "attention_mask": (batch["input_ids"] != pad).long()}


def instruction(sequences: Sequences, sample: dict, rng: random.Random):
    """One example with random ids, in the shares of small/sft: edit, answer, draw, describe, talk."""
    before, after = (torch.tensor([rng.randrange(SIZES["small"][-1]) for _ in range(K)]) for _ in range(2))
    question, edit = rng.choice(sample["meta"]["questions"]), sample["meta"]["edit"]["instruction"]
    asked = ([before, question["question"]], [question["answer"]])
    task = rng.choices(("edit", "ask", "draw", "describe", "talk"), (0.35, 0.3, 0.15, 0.05, 0.15))[0]
    if task == "talk":
        return sequences.conversation([asked, ([edit], [after])])
    return sequences.instruction(
        *{
            "edit": ([before, edit], [after]),
            "ask": asked,
            "draw": ([sample["text"]], [before]),
            "describe": ([before, "describe the picture"], [sample["text"]]),
        }[task]
    )


def compare_losses() -> None:
    """50 steps of both from equal weights in float32."""
    found = []
    for train in (train_ddt, train_hf):
        lm = build("3M")
        batches = [{"input_ids": b["input_ids"][:4], "labels": b["labels"][:4]} for b in full_rows(lm, "3M", 50)]
        found.append(train(lm, batches, "fp32")[1])
    differences = [abs(left - right) for left, right in zip(*found, strict=True)]
    first, last = found[0][0], found[0][-1]
    print(f"losses of 50 steps in fp32, from {first:.4f} to {last:.4f}: largest difference {max(differences):.1e}")


def main() -> None:
    """Run the parts that are named, or two."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    options, parts = settings(precision="fp32", rounds=5, steps=1, compile="off")
    for part in parts or ["3M", "losses"]:
        if part == "losses":
            compare_losses()
        elif part == "sft":
            compare_sft(**options)
        else:
            compare(part, **options)


if __name__ == "__main__":
    main()
