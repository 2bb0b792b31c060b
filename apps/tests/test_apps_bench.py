"""`ddt bench`: figures that come from measured time, beside the machine they are of."""

import json
import time
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.machine import bench, rehearsal
from ddt_apps.run.config import load_config
from ddt_apps.train.settings import TrainTokenizer
from ddt_tokenizer import LatentConfig

ddt = CliRunner()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A tokenizer and the language model of its ids, by the command itself."""
    file = tmp_path_factory.mktemp("bench") / "a.json"
    words = ["tiny/tokenizer", "tiny/pretrain", "batch_size=2", "precision=32", "device=cpu", "--out", str(file)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "SECONDS", 0.0)
        done = ddt.invoke(app, ["bench", *words])
    assert done.exit_code == 0, done.output
    return file, json.loads(file.read_text()), done.output


def test_each_part_is_measured(measured):
    _, found, said = measured
    works = [(row["config"].split("/")[1], row["work"]) for row in found["rows"]]
    drawn = [("tokenizer", f"decode, {steps}") for steps in ("1 step", "4 steps", "25 steps")]
    assert works == [
        ("tokenizer", "encode"),
        *drawn,
        ("tokenizer", "train"),
        ("pretrain", "train"),
        ("pretrain", "generate"),
    ]
    assert found["format"] == bench.FORMAT and found["machine"]["versions"]["torch"] == torch.__version__
    assert {"name", "cpu", "cores", "threads", "memory", "device", "system"} < found["machine"].keys()
    for row in found["rows"]:
        assert row["rate"] > 0 and row["seconds"] > 0 and row["flops"] > 0 and row["precision"] == "32-true"
        assert row["mfu"] == pytest.approx(row["flops"] / row["seconds"] / row["peak"])
        assert 0 < row["mfu"] < 1.5 and 1e6 < row["memory"] < 2e9
    few, many = found["rows"][1], found["rows"][3]
    assert 10 < many["flops"] / few["flops"] < 40 and few["rate"] > 3 * many["rate"]
    assert f"{1 / many['rate']:.3g} s/image" in said and "wrote " in said


def test_several_machines_stand_side_by_side(measured, tmp_path):
    file, found, _ = measured
    other = replace_rates(found, 2.0)
    (tmp_path / "b.json").write_text(json.dumps(other))
    said = ddt.invoke(app, ["bench", "--merge", str(file), str(tmp_path / "b.json")]).output
    row = next(line for line in said.splitlines() if line.startswith("tiny/pretrain") and "generate" in line)
    rate = found["rows"][-1]["rate"]
    assert f"{rate:,.0f} tokens/s" in row and f"{2 * rate:,.0f} tokens/s" in row
    assert said.startswith("1  ") and "\n2  " in said


def replace_rates(found, factor):
    return {**found, "rows": [{**row, "rate": row["rate"] * factor} for row in found["rows"]]}


def test_time_is_that_of_the_work(monkeypatch):
    def work():
        begin = time.thread_time()
        while time.thread_time() < begin + 0.02:
            torch.zeros(8, 8) @ torch.zeros(8, 8)
        time.sleep(0.05)  # what others do in the meantime

    monkeypatch.setattr(bench, "SECONDS", 0.0)
    row = bench._timed("work", "images", 1, 1, CPU, work)
    assert 0.02 <= row["seconds"] < 0.05 and row["repeats"] == bench.LEAST and row["flops"] >= 2 * 8**3


def test_the_peak_is_that_of_products():
    product = torch.randn(512, 512) @ torch.randn(512, 512)
    begin = time.thread_time()
    for _ in range(20):
        product @ product
    reached = 20 * 2 * 512**3 / (time.thread_time() - begin)
    assert 0.3 < rehearsal.matrix_peak(CPU, "32-true", 512) / reached < 3


def test_a_codec_on_latents_gets_an_autoencoder(tmp_path):
    config = load_config(TrainTokenizer, "small/tokenizer", ["data=x", "precision=32"])
    network, encoder = replace(config.codec.network, depth=1), replace(config.codec.encoder, depth=1)
    codec = bench._codec(replace(config, codec=replace(config.codec, network=network, encoder=encoder)), CPU, tmp_path)
    ids = codec.encode(torch.zeros(1, 3, 64, 64))
    assert ids.shape == (1, 64) and codec.decode(ids, num_steps=1).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny/pretrain"], "reads ids; name a tokenizer before it, or say --ids 65536 480"),
        (["tiny/nothing"], "tiny/nothing"),
        (["tiny/tokenizer", "precison=32"], "did you mean 'precision'"),
        (["tiny/tokenizer", "--out", "bench.txt"], "--out 'bench.txt' must end in .json"),
        (["--merge", "{folder}/other.json"], "is not of ddt bench"),
        (["--merge"], "--merge shows files of ddt bench"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(words, said, tmp_path):
    (tmp_path / "other.json").write_text("{}")
    done = ddt.invoke(app, ["bench", *(word.format(folder=tmp_path) for word in words)])
    assert done.exit_code == 2 and said in done.output and len(done.output.splitlines()) == 1


def test_an_autoencoder_that_comes_along_is_counted_by_its_name():
    vae = rehearsal.autoencoder("ddt-small-64/vae", LatentConfig(channels=8, downscale=4))
    assert type(vae).__name__ == "AutoencoderTiny" and next(vae.parameters()).is_meta
    with pytest.raises(ValueError, match="'nowhere/vae' is not here"):
        rehearsal.autoencoder("nowhere/vae", LatentConfig(channels=8, downscale=4))
