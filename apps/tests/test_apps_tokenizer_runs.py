"""Runs of ddt train-tokenizer and train-renderer: resumed, averaged, fine-tuned, guarded, in latents of a VAE."""

import os
import signal
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ddt_apps.cli.main import app
from ddt_apps.evaluation.models import load_model
from ddt_apps.run.config import load_config
from ddt_apps.run.metrics import read_metrics
from ddt_apps.shards.make import make_scenes
from ddt_apps.shards.tokenize import tokenize_shards
from ddt_apps.train import renderer as train_renderer
from ddt_apps.train import tokenizer as train_tokenizer
from ddt_apps.train.pictures import open_pictures
from ddt_apps.train.settings import TrainRenderer, TrainTokenizer
from ddt_data import ShardDataset
from ddt_decoder import DDTDecoder, DecoderConfig
from ddt_tokenizer import DDTTokenizer, LatentConfig, TokenizerConfig
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import to_tensor
from ddt_tokenizer.latents import LatentSpace
from ddt_tokenizer.training import TokenizerTraining

TOY = [
    "data=data",
    "codec.encoder.width=16",
    "codec.encoder.depth=1",
    "codec.encoder.num_heads=2",
    "codec.quantizer.codebook_size=32",
    "codec.network.width=16",
    "codec.network.depth=2",
    "codec.network.num_heads=2",
    "training.optimizer.steps=12",
    "training.optimizer.warmup_steps=2",
    "training.continuous_steps=4",
    "batch_size=4",
    "held_out=3",
    "watch_every=10",
    "loggers=[]",
]
FINE_TUNE = ["training.continuous_steps=0", "init_from=runs/first"]


def toy(name, *overrides):
    return load_config(TrainTokenizer, "tiny/tokenizer", [*TOY, f"name={name}", *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Some scenes, and a tokenizer run `first`."""
    folder = tmp_path_factory.mktemp("tokenizer_runs")
    before = os.getcwd()
    os.chdir(folder)
    try:
        make_scenes(folder / "data", 40, level="tiny")
        train_tokenizer.train(toy("first"))
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupted(monkeypatch, module, method, step, act):
    """Let `act` happen in a training step of `module`."""
    original = getattr(module, method)

    def acting(self, *arguments):
        if self.global_step == step:
            act()
        return original(self, *arguments)

    monkeypatch.setattr(module, method, acting)


def test_a_run_leaves_samples_health_and_rows_of_both(here):
    run = here / "runs" / "first"
    assert Image.open(run / "samples" / "00000010.png").size == (3 * 32, 2 * 32)
    assert (run / "health.json").is_file() and not (run / "tensorboard").exists()
    steps, usage = read_metrics(run / "metrics.csv")["codes/usage"]
    assert steps == [10, 12] and 0 < usage[0] <= 1


def test_held_out_pictures_are_not_trained_on(here):
    pictures = open_pictures("data", 32, 3)
    assert len(pictures.dataset) == 37
    shards = ShardDataset("data")
    assert torch.equal(pictures.held_out, to_tensor([shards[i]["image"] for i in (37, 38, 39)]))
    with pytest.raises(ValueError, match=r"held_out \(40\) must be 0 to 39"):
        open_pictures("data", 32, 40)


@pytest.mark.parametrize(
    "settings",
    [["training.ema_decay=0.9"], ["accumulate=3", "gradient_clip=null"], ["codec.quantizer.diversity=1"]],
)
def test_an_interrupted_run_equals_an_uninterrupted_one(here, monkeypatch, settings):
    name = settings[0].split("=")[0]
    whole = train_tokenizer.train(toy(f"whole-{name}", *settings))
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with monkeypatch.context() as patch:
        interrupted(patch, TokenizerTraining, "training_step", 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            train_tokenizer.train(toy(f"cut-{name}", *settings))
    signal.signal(signal.SIGTERM, handler)
    assert not (here / "runs" / f"cut-{name}" / "done.json").exists()
    cut = train_tokenizer.train(toy(f"cut-{name}", *settings))
    for part in ("tokenizer", "decoder"):
        assert same(weights(whole / part), weights(cut / part))
    for file in ("metrics.csv", "health.json"):
        assert (whole / file).read_text() == (cut / file).read_text()
    assert read_metrics(whole / "metrics.csv")["loss"][0] == [10, 12]  # updates, however many batches each takes


def test_the_average_is_what_is_exported(here):
    """At a decay near one the average hardly leaves the first weights; the trained ones do."""
    config = toy("averaged", "training.ema_decay=0.999")
    _, start = train_tokenizer.build(config)
    run = train_tokenizer.train(config)
    started, averaged, trained = start.state_dict(), weights(run / "decoder"), weights(here / "runs/first/decoder")
    name = "network.token_in.weight"
    moved = (averaged[name] - started[name]).norm()
    assert 0 < moved < 0.2 * (trained[name] - started[name]).norm()
    assert Codec.from_pretrained(run).decoder.tokenizer_fingerprint  # its table is the tokenizer's


@pytest.mark.parametrize("step", [2, 8])  # before and after quantization begins
def test_a_gradient_that_is_not_finite_stops_before_it_does_harm(here, monkeypatch, step):
    whole = train_tokenizer.train(toy("no-nan"))
    with monkeypatch.context() as patch:
        loss = DDTDecoder.loss
        calls = []

        def broken(self, latents, tokens):
            calls.append(0)
            return loss(self, latents * (torch.nan if len(calls) == step + 1 else 1.0), tokens)

        patch.setattr(DDTDecoder, "loss", broken)
        with pytest.raises(ValueError, match=rf"not finite at step {step}; the state before it is in .*last\.ckpt"):
            train_tokenizer.train(toy(f"nan-{step}"))
    healed = train_tokenizer.train(toy(f"nan-{step}"))
    for part in ("tokenizer", "decoder"):
        assert same(weights(whole / part), weights(healed / part))


def test_fine_tuning_starts_where_the_other_run_ended(here):
    first = here / "runs" / "first"
    tokenizer, decoder = train_tokenizer.build(toy("x", *FINE_TUNE))
    assert same(tokenizer.state_dict(), weights(first / "tokenizer"))
    assert same(decoder.state_dict(), weights(first / "decoder"))


def test_a_frozen_tokenizer_keeps_its_ids_and_a_frozen_encoder_its_weights(here):
    first = weights(here / "runs/first/tokenizer")
    run = train_tokenizer.train(toy("frozen", *FINE_TUNE, "training.freeze=tokenizer"))
    assert same(weights(run / "tokenizer"), first)
    assert not same(weights(run / "decoder"), weights(here / "runs/first/decoder"))
    assert Codec.from_pretrained(run).fingerprint == Codec.from_pretrained("runs/first").fingerprint
    run = train_tokenizer.train(toy("encoder", *FINE_TUNE, "training.freeze=encoder"))
    tuned = weights(run / "tokenizer")
    assert same(*({n: w for n, w in each.items() if n.startswith("encoder.")} for each in (tuned, first)))
    assert not torch.equal(tuned["quantizer.codebook"], first["quantizer.codebook"])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ([*FINE_TUNE, "codec.encoder.num_heads=1"], "codec.encoder.num_heads=2, not 1"),
        ([*FINE_TUNE, "codec.network.depth=1"], "codec.network.depth=2, not 1"),
        (["training.continuous_steps=0", "init_from=nowhere"], "nowhere"),
        (["init_from=runs/first"], r"continuous_steps \(4\) must be 0"),
        ([*FINE_TUNE, "init_sd3=sd3"], "init_from and init_sd3"),
        (["init_sd3=./nowhere"], "nowhere"),
        (["codec.network.token_width=3"], "follows from codec.quantizer.code_width; set that"),
        (["codec.encoder.num_tokens=8"], "follows from codec.schedule; set that"),
        (["vae=./nowhere"], "nowhere"),
    ],
)
def test_a_start_that_does_not_fit_is_named(settings, named):
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        train_tokenizer.build(toy("x", *settings))


@pytest.fixture(scope="module")
def vae(folder):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=6,
        scaling_factor=1.5,
        shift_factor=0.1,
    ).save_pretrained(folder / "vae")
    return "vae"


def test_tokenizer_and_renderer_train_in_the_latents_of_an_autoencoder(vae):
    settings = [f"vae={vae}", "codec.encoder.patch_size=2", "codec.network.patch_size=2"]
    run = train_tokenizer.train(toy("latent", *settings))
    codec = Codec.from_pretrained(run)
    latents = codec.tokenizer.config.latents
    assert (latents.channels, latents.downscale, latents.scale, latents.shift) == (6, 4, 1.5, 0.1)
    assert codec.decode(codec.encode(torch.zeros(2, 3, 32, 32))).shape == (2, 3, 32, 32)
    config = ["data=data", f"tokenizer={run}", "name=latent-renderer", "steps=2", "batch_size=2", "held_out=2"]
    rendered = train_renderer.train(load_config(TrainRenderer, "tiny/renderer", config))
    assert load_model(str(rendered)).decode(torch.zeros(1, 16, dtype=torch.long)).shape == (1, 3, 32, 32)


def test_training_from_cached_latents_is_training_from_pictures(vae, monkeypatch):
    settings = ["vae=vae", "codec.encoder.patch_size=2", "codec.network.patch_size=2"]
    assert app(["data", "latents", "data", "--vae", vae, "--out", "cached"], standalone_mode=False) in (None, 0)
    cached, pictures = ShardDataset("cached"), ShardDataset("data")
    space = LatentSpace(LatentConfig.from_vae(vae))
    for row, sample in zip(cached, pictures, strict=True):
        assert row["key"] == sample["key"] and row["text"] == sample["text"] and "image" not in row
        assert torch.allclose(
            torch.from_numpy(row["latents"]).float(), space.encode(to_tensor([sample["image"]]))[0], atol=2e-3
        )
    plain = train_tokenizer.train(toy("from-pictures", *settings))
    encoded, encode = [], LatentSpace.encode
    monkeypatch.setattr(LatentSpace, "encode", lambda self, images: encoded.append(images) or encode(self, images))
    run = train_tokenizer.train(toy("from-latents", "data=cached", *settings))
    assert [len(images) for images in encoded] == [3]  # to draw the held-out pictures at step 10, no more
    losses = [read_metrics(folder / "metrics.csv")["loss"][1] for folder in (plain, run)]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    with pytest.raises(ValueError, match="'cached' holds latents, and a renderer learns pictures"):
        train_renderer.train(renderer("of-latents", "data=cached", f"tokenizer={run}"))
    elsewhere = cached.manifest.latents | {"vae": "elsewhere"}  # latents fit wherever their VAE has been moved to
    replace(cached.manifest, latents=elsewhere).write("cached")
    assert tokenize_shards(Path("cached"), run, Path("ids")).samples == len(cached)
    with pytest.raises(ValueError, match=r"'elsewhere' cannot be loaded.*held_out=0"):
        train_tokenizer.train(toy("without-vae", "data=cached", *settings[1:]))
    alone = train_tokenizer.train(toy("without-vae", "data=cached", *settings[1:], "held_out=0"))
    assert DDTTokenizer.from_pretrained(alone / "tokenizer").config.latents.vae == "elsewhere"
    replace(cached.manifest, latents=elsewhere | {"scale": 9.0}).write("cached")
    with pytest.raises(ValueError, match="the tokenizer takes LatentConfig"):
        train_tokenizer.train(toy("other-space", "data=cached", *settings))
    replace(cached.manifest, latents=elsewhere).write("cached")
    with pytest.raises(ValueError, match="have 32 px, the tokenizer takes 16"):
        sixteen = ["codec.image_size=16"]
        train_tokenizer.train(toy("other-size", "data=cached", *settings, *sixteen))


def test_latents_without_an_autoencoder_are_refused():
    with pytest.raises(ValueError, match="set vae="):
        train_tokenizer.build(load_config(TrainTokenizer, "imagenet/selftok-512", ["data=data"]))


def test_a_decoder_starts_from_sd3_and_says_what_it_does_not_take(here, capsys):
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(1)
    source = SD3Transformer2DModel(
        sample_size=32,
        patch_size=8,
        in_channels=3,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=3,
        pos_embed_max_size=6,
    )
    source.save_pretrained("sd3")
    shape = ["codec.network.qk_norm=false", "codec.network.table_side=6", "codec.network.open_gates=false"]
    _, decoder = train_tokenizer.build(toy("x", *shape, "init_sd3=sd3"))
    theirs = source.transformer_blocks[1].ff.net[0].proj.weight
    assert torch.equal(decoder.network.blocks[1].mlp[0][0].weight, theirs)
    said = capsys.readouterr().out
    assert "not filled from 'sd3'" in said and "token_in.weight" in said and "blocks.*.mlp.1.0.weight" in said
    assert "mlp.0." not in said and said.count("mlp.1.0.weight") == 1


def renderer(name, *overrides):
    toy = ["data=data", "tokenizer=runs/first", "steps=10", "batch_size=4", "held_out=3", "watch_every=5"]
    small = ["training.discriminator_width=8", "training.second_phase_step=4", "training.second_phase=[0.5,0.5]"]
    return load_config(TrainRenderer, "tiny/renderer", [*toy, *small, "loggers=[]", f"name={name}", *overrides])


def test_a_codec_draws_in_as_many_steps_as_its_decoder_was_trained_for():
    codec = Codec.from_pretrained("runs/first")
    flow = replace(codec.decoder.config.flow, full_noise_share=0.0)
    decoder = DDTDecoder(replace(codec.decoder.config, flow=flow))
    decoder.set_codebook(codec.decoder.codebook, codec.fingerprint)
    assert codec.num_steps == 1 and Codec(codec.tokenizer, decoder).num_steps == 25
    ids = torch.zeros(1, codec.num_tokens, dtype=torch.long)
    for each in (codec, Codec(codec.tokenizer, decoder)):  # the library draws what `ddt` does
        assert torch.equal(each.decode(ids), each.decoder.decode(ids))
    assert Codec.from_pretrained("runs/first", num_steps=3).num_steps == 3


def test_a_renderer_of_another_tokenizer_is_refused(here):
    run = train_renderer.train(renderer("r"))
    other = train_tokenizer.train(toy("other", "seed=1"))
    with pytest.raises(ValueError, match=r"tokenizer and renderer do not belong together \(fingerprint"):
        Codec.from_pretrained(other, renderer=run)
    with pytest.raises(FileNotFoundError, match="no finished renderer run in 'runs/first'"):
        Codec.from_pretrained(other, renderer="runs/first")


TWINS = ["small", "small-long"]  # each with a spatial twin
SMALL = [f"{size}/{name}" for size in TWINS for name in ("tokenizer", "spatial")]
TOKENIZERS = ["tiny/tokenizer", *SMALL, "small/drawings", "imagenet/ddt-480", "imagenet/selftok-512"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_shipped_configurations_build_and_every_rate_fits_a_weight(name):
    config = load_config(TrainTokenizer, name, ["data=data"])
    with torch.device("meta"):
        tokenizer, decoder = DDTTokenizer(config.codec.tokenizer), DDTDecoder(config.codec.decoder)
        module = TokenizerTraining(tokenizer, decoder, replace(config.training, ema_decay=0.0))
    names = [name for name, _ in module.named_parameters()]
    for pattern in config.training.optimizer.rates:
        assert any(fnmatchcase(name, pattern) for name in names), pattern


@pytest.mark.parametrize("size", TWINS)
def test_the_spatial_twin_is_equal_but_for_where_its_ids_stand(size):
    haar, grid = (load_config(TrainTokenizer, f"{size}/{name}", ["data=data"]) for name in ("tokenizer", "spatial"))
    own = {
        **{"start": "grid", "schedule": (64,) + (0,) * 24},
        "flow": replace(haar.codec.flow, prefix_share=0.0, full_noise_share=0.615),
        "encoder": replace(haar.codec.encoder, mode="spatial", start="grid"),
        "network": replace(haar.codec.network, start="grid"),
    }
    assert grid.codec == replace(haar.codec, **own)
    optimizer = replace(haar.training.optimizer, rates={})
    assert grid.training == replace(haar.training, optimizer=optimizer) and grid.batch_size == haar.batch_size
    small = load_config(TrainTokenizer, "small/tokenizer", ["data=data"])
    steps, continuous = haar.training.optimizer.steps, haar.training.continuous_steps
    longer = replace(small.training.optimizer, steps=steps)
    assert haar == replace(small, training=replace(small.training, continuous_steps=continuous, optimizer=longer))
    assert continuous / steps == small.training.continuous_steps / small.training.optimizer.steps


def test_drawings_are_learned_as_scenes_are_and_a_start_can_be_left_out():
    small, drawings = (load_config(TrainTokenizer, f"small/{n}", ["data=data"]) for n in ("tokenizer", "drawings"))
    assert drawings == small
    overrides = ["data=data", "codec.start=null", "training.optimizer.rates={}"]
    plain = load_config(TrainTokenizer, "small/tokenizer", overrides)
    assert plain.training.optimizer.rates == {} != small.training.optimizer.rates


@pytest.mark.parametrize(("name", "both_phases"), [("tiny", False), ("small", False), ("imagenet", True)])
def test_shipped_renderer_configurations_load(name, both_phases):
    config = load_config(TrainRenderer, f"{name}/renderer", ["data=data", "tokenizer=runs/first"])
    assert (config.training.second_phase_step < config.steps) == both_phases


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_small_configurations_are_the_presets(name):
    config = load_config(TrainTokenizer, f"{name}/tokenizer", ["data=data"])
    assert config.codec.tokenizer == getattr(TokenizerConfig, name)()
    assert config.codec.decoder == getattr(DecoderConfig, name)()


@pytest.mark.parametrize("name", ["ddt-480", "selftok-512"])
def test_full_size_configurations_are_the_presets_with_the_rates_of_selftok(name):
    config, preset = load_config(TrainTokenizer, f"imagenet/{name}", ["data=data"]), name.replace("-", "_")
    assert config.codec.tokenizer == getattr(TokenizerConfig, preset)()
    network = replace(config.codec.network, activation_checkpointing=False)
    assert config.codec.network.activation_checkpointing
    assert replace(config.codec.decoder, network=network) == getattr(DecoderConfig, preset)()
    with torch.device("meta"):
        decoder = DDTDecoder(config.codec.decoder)
    image = {id(parameter) for parameter in decoder.image_parameters()}
    optimizer = config.training.optimizer
    for name, parameter in decoder.named_parameters():
        assert optimizer.rate(f"decoder.{name}") == (1e-5 if id(parameter) in image else 5e-5), name
    assert {optimizer.factor(step) for step in (0, 50_000, optimizer.steps - 1)} == {1.0}
