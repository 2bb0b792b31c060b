"""Train small models, kill them with SIGKILL at random steps, resume, and compare with an uninterrupted run.

    python packages/ddt-data/tests/kill_and_resume.py --kills 20

Prints a line for each topology (ranks x workers, and what it changes to after the first kill). Fails unless every epoch
consumed each sample exactly once, in the uninterrupted run's batches; and, where the topology stays, with losses and
weights equal to the bit. Libraries are loaded once: runs are forks of this process.
"""

import argparse
import json
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ddt_data import ShardDataset, ShardWriter, open_shards
from ddt_data.shards.datamodule import ShardStream

STEPS, BATCH = 40, 12  # 480 samples: 7 epochs of one source and a part of the next


@dataclass(frozen=True)
class Topology:
    ranks: int
    workers: int


class Model(LightningModule):
    """A small network with a momentum and dropout, so that any difference in data or state shows in the loss."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.seed = seed
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))

    def on_train_batch_start(self, batch, index):
        torch.manual_seed(1000 * self.seed + 10 * self.global_step + self.global_rank)

    def training_step(self, batch, index):
        self.keys = batch[0]
        self.loss = (self.layers(batch[1]) - 1).square().mean()
        return self.loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Record(Callback):
    """Log what each step consumed, save every few steps, and die where told."""

    def __init__(self, folder: Path, die_at: tuple[int, int, str] | None):
        self.folder, self.die_at = folder, die_at

    def on_train_batch_start(self, trainer, module, batch, index):
        self._die(trainer, "before the step")

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        row = {"step": trainer.global_step, "keys": module.keys, "loss": module.loss.item().hex()}
        with open(self.folder / f"rank{trainer.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        self._die(trainer, "before the checkpoint")
        if trainer.global_step % 4 == 0 or trainer.global_step == STEPS:
            trainer.save_checkpoint(self.folder / "new.ckpt")
            if trainer.is_global_zero:
                self._die(trainer, "before the rename")
                os.replace(self.folder / "new.ckpt", self.folder / "last.ckpt")
        self._die(trainer, "after the checkpoint")

    def _die(self, trainer, moment):
        if self.die_at == (trainer.global_rank, trainer.global_step, moment):
            os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = ("before the step", "before the checkpoint", "before the rename", "after the checkpoint")


def collate(samples):
    return [s["text"] for s in samples], torch.from_numpy(np.stack([s["ids"] for s in samples])).float() / 16


def train(folder: Path, data: str, topology: Topology, rank: int, port: int, die_at) -> None:
    """One rank of one run, from the last checkpoint on; called in a process of its own."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    stream = ShardStream(open_shards(data), collate, BATCH, STEPS, seed=5, num_workers=topology.workers)
    trainer = Trainer(
        accelerator="cpu",
        devices=topology.ranks,
        strategy="ddp" if topology.ranks > 1 else "auto",
        max_steps=STEPS,
        default_root_dir=folder,
        callbacks=[Record(folder, die_at)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    last = folder / "last.ckpt"
    module = Model()
    trainer.fit(module, stream, ckpt_path=last if last.exists() else None, weights_only=True)
    if rank == 0:
        torch.save(module.state_dict(), folder / "weights.pt")


def run(folder: Path, data: str, topology: Topology, die_at=None) -> bool:
    """Start all ranks; True if they finished, False once one was killed (the others are then killed too)."""
    prune(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(topology.ranks):
        if (process := os.fork()) == 0:
            status = 1
            try:
                train(folder, data, topology, rank, port, die_at)
                status = 0
            finally:
                if status:
                    traceback.print_exc()
                os._exit(status)
        ranks.append(process)
    failed = False
    while ranks:
        process, status = os.wait()
        if process in ranks:
            ranks.remove(process)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                sys.exit("a run failed by itself")
            if os.WIFSIGNALED(status) and not failed:
                failed = True
                for other in ranks:
                    os.kill(other, signal.SIGKILL)
    return not failed


def prune(folder: Path) -> None:
    """Forget what was consumed after the last checkpoint; a resumed run consumes it again."""
    last = folder / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
    for log in folder.glob("rank*.jsonl"):
        rows = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= step]
        log.write_text("".join(line + "\n" for line in rows))


def consumed(folder: Path) -> tuple[list[list[str]], list[tuple[str, ...]]]:
    """Give keys and losses of each step, of all ranks."""
    steps: dict[int, list[dict]] = {}
    for log in sorted(folder.glob("rank*.jsonl")):
        for line in log.read_text().splitlines():
            row = json.loads(line)
            steps.setdefault(row["step"], []).append(row)
    assert sorted(steps) == list(range(1, STEPS + 1)), "a step is missing"
    rows = [steps[step] for step in sorted(steps)]
    return [[key for row in step for key in row["keys"]] for step in rows], [tuple(r["loss"] for r in s) for s in rows]


def check_epochs(keys: list[list[str]], sources: dict[str, int]) -> None:
    """Each source's samples in the order of consumption: every stretch of its length holds each of them once."""
    flat = [key for step in keys for key in step]
    for source, length in sources.items():
        mine = [key for key in flat if key.startswith(source)]
        for start in range(0, len(mine), length):
            epoch = mine[start : start + length]
            assert len(epoch) < length or set(Counter(epoch).values()) == {1}, f"{source}: a sample came twice"
            assert len(set(epoch)) == len(epoch), f"{source}: a sample came twice"


def write(folder: Path, name: str, count: int) -> Path:
    rng = np.random.default_rng(count)
    tokenizer = {"fingerprint": "f", "codebook_size": 16, "num_tokens": 4}
    with ShardWriter(folder / name, samples_per_shard=20, tokenizer=tokenizer) as writer:
        for number in range(count):
            writer.write({"key": f"{number:04d}", "text": f"{name}{number}", "ids": rng.integers(0, 16, 4)})
    return folder / name


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    one, two = write(folder, "a", 67), write(folder, "b", 23)
    plans = [
        (f"{one}", Topology(1, 0), None),
        (f"{one}:0.7,{two}:0.3", Topology(1, 2), None),
        (f"{one}:0.7,{two}:0.3", Topology(2, 0), None),
        (f"{one}", Topology(2, 1), None),
        (f"{one}", Topology(1, 2), Topology(1, 3)),
        (f"{one}:0.7,{two}:0.3", Topology(2, 1), Topology(1, 1)),
        (f"{one}", Topology(2, 3), None),
    ]
    kills = Counter(number % len(plans) for number in range(arguments.kills))
    for number, (data, first, then) in enumerate(plans):
        if kills[number]:
            compare(folder / f"plan{number}", data, first, then or first, kills[number], rng)


def compare(folder: Path, data: str, first: Topology, then: Topology, kills: int, rng: random.Random) -> None:
    whole, cut = folder / "whole", folder / "cut"
    whole.mkdir(parents=True)
    cut.mkdir()
    assert run(whole, data, first)
    topology, done, places = first, 0, []
    for step in sorted(rng.sample(range(2, STEPS - 1), kills)):
        moment = rng.choice(MOMENTS)
        step += -step % 4 if moment == "before the rename" else 0
        rank = 0 if moment == "before the rename" else rng.randrange(topology.ranks)
        killed = not run(cut, data, topology, (rank, step, moment))
        done += killed
        places.append(step)
        topology = then
    assert done == kills and run(cut, data, then), "not every kill took place"
    (keys, losses), (found, mine) = consumed(whole), consumed(cut)
    assert found == keys, "other batches than the uninterrupted run's"
    folders = [entry.rpartition(":")[0] or entry for entry in data.split(",")]
    check_epochs(found, {Path(source).name: len(ShardDataset(source)) for source in folders})
    same = first == then
    if same:
        assert mine == losses, "losses differ"
        a, b = (torch.load(run / "weights.pt", weights_only=True) for run in (whole, cut))
        assert all(torch.equal(a[name], b[name]) for name in a), "weights differ"
    what = "mixture" if len(folders) > 1 else "one source"
    change = "" if same else f" -> {then.ranks} x {then.workers}"
    exact = "every epoch exact" + (", losses and weights equal to the bit" if same else "")
    print(
        f"{first.ranks} ranks x {first.workers} workers{change}, {what}: {kills} kills at steps {places}: {exact}",
        flush=True,
    )


if __name__ == "__main__":
    main()
