"""Mixtures: each source its share, each of its samples once before any comes again, on any number of ranks."""

from dataclasses import replace

import pytest
from torch.utils.data import DataLoader

from ddt_data import Manifest, Mixture, ShardDataset, ShardWriter, StepSampler, open_shards
from ddt_data.shards.datamodule import ShardStream


def drawn(lengths, weights, steps, batch_size=10, **options):
    return [i for batch in StepSampler(lengths, batch_size, steps, seed=4, weights=weights, **options) for i in batch]


def test_shares_are_kept_and_each_source_runs_through_its_own_epochs():
    order = drawn([300, 70, 11], [0.5, 0.3, 0.2], steps=300)
    parts = [[i for i in order if low <= i < high] for low, high in ((0, 300), (300, 370), (370, 381))]
    assert [len(part) for part in parts] == [1500, 900, 600]
    for part, length in zip(parts, (300, 70, 11), strict=True):
        epochs = [part[at : at + length] for at in range(0, len(part) - length + 1, length)]
        assert all(len(set(epoch)) == length for epoch in epochs)
        assert len(set(map(tuple, epochs))) == len(epochs)  # each in another order


def test_shares_hold_in_every_part_of_the_run():
    order = drawn([1000, 1000], [9, 1], steps=1000)
    shares = [sum(i >= 1000 for i in order[at : at + 500]) for at in range(0, 10_000, 500)]
    assert min(shares) >= 30 and max(shares) <= 70  # 50 expected


@pytest.mark.parametrize("weights", [None, [0.7, 0.2, 0.1]])
def test_ranks_split_each_batch_whatever_their_number(weights):
    options = {"length": [50, 20, 9], "batch_size": 12, "steps": 40, "seed": 1, "weights": weights}
    whole = list(StepSampler(**options))
    for world_size in (2, 3, 4):
        ranks = [list(StepSampler(**options, rank=rank, world_size=world_size)) for rank in range(world_size)]
        assert [[i for share in shares for i in share] for shares in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize("start", [0, 1, 39, 40])
def test_a_later_start_gives_the_rest(start):
    options = {"length": [50, 20], "batch_size": 60, "steps": 40, "seed": 1, "weights": [3, 1]}
    assert list(StepSampler(**options, start=start)) == list(StepSampler(**options))[start:]


def test_whole_batches_come_from_one_source():
    batches = StepSampler([30, 12], 4, 1000, seed=0, weights=[1, 1], whole_batches=True)
    kinds = [{i >= 30 for i in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds) and sum(kind == {True} for kind in kinds) == 500


def test_one_source_is_ordered_as_ever():
    assert list(StepSampler([13], 4, 9, seed=3, weights=[5])) == list(StepSampler(13, 4, 9, seed=3))
    assert list(StepSampler([5, 8], 4, 9, seed=3)) == list(StepSampler(13, 4, 9, seed=3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": [1]}, "weights"),
        ({"weights": [1, 0]}, "weights"),
        ({"weights": [1, -1]}, "weights"),
        ({"weights": [10_000, 1]}, "1/1000 of their sum"),
        ({"world_size": 3}, "divisible by the number of ranks"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        StepSampler([5, 5], 4, 9, seed=3, **options)


def write(folder, texts, **options):
    with ShardWriter(folder, **options) as writer:
        for number, text in enumerate(texts):
            writer.write({"key": str(number), "text": text})
    return folder


def test_folders_are_opened_as_a_configuration_names_them(tmp_path):
    a, b = write(tmp_path / "a", ["a0", "a1"]), write(tmp_path / "b", ["b0", "b1", "b2"])
    one = open_shards(a)
    assert isinstance(one, Mixture) and [source.folder for source in one.sources] == [a] and one.weights is None
    both = open_shards(f"{a}, {b}")
    assert [sample["text"] for sample in both] == ["a0", "a1", "b0", "b1", "b2"]
    assert both.weights is None and open_shards(f"{a}:3,{b}:1").weights == [3.0, 1.0]
    assert both.manifest.samples == 5
    both.check()
    with pytest.raises(IndexError):
        both[5]
    for data, words in ((f"{a}:x,{b}:1", "must be a number"), (f"{a}:1,{b}", "every folder a share, or none")):
        with pytest.raises(ValueError, match=words):
            open_shards(data)


def test_one_folder_is_a_mixture_of_one_in_the_same_order(tmp_path):
    folder = write(tmp_path / "a: b", [str(i) for i in range(13)])  # a name may hold a colon
    alone, options = ShardDataset(folder), {"batch_size": 4, "steps": 9, "seed": 3}
    order = list(StepSampler(13, **options))
    for data in (folder, f"{folder}:5"):
        one = open_shards(data)
        assert list(one) == list(alone) and list(one.order(**options)) == order
        assert list(one.order(**options, start=4, count_epochs=True)) == list(
            StepSampler(13, **options, start=4, count_epochs=True)
        )
    for dataset in (alone, open_shards(folder)):
        batches = ShardStream(dataset, collate_fn=list, **options).train_dataloader()
        assert [[int(sample["key"]) for sample in batch] for batch in batches] == order


def test_a_stream_takes_the_shares_of_a_mixture(tmp_path):
    a, b = write(tmp_path / "a", ["a"] * 9), write(tmp_path / "b", ["b"] * 90)
    stream = ShardStream(open_shards(f"{a}:9,{b}:1"), collate_fn=list, batch_size=10, steps=100, seed=0)
    assert sum(sample["text"] == "a" for batch in stream.train_dataloader() for sample in batch) == 900


def test_sources_that_do_not_fit_together_are_refused(tmp_path):
    a, b = write(tmp_path / "a", ["x"], image_size=32), write(tmp_path / "b", ["x"], image_size=64)
    with pytest.raises(ValueError, match=r"image_size is 32 in .*a and 64 in .*b"):
        open_shards(f"{a}, {b}")
    with pytest.raises(ValueError, match="weights"):
        Mixture([ShardDataset(a)], [1, 2])


def test_latents_of_one_space_are_mixed_and_of_two_are_refused(tmp_path):
    spaces = {"a": {"channels": 4, "scale": 1.5, "vae": "x"}, "b": {"channels": 4, "scale": 1.5, "vae": "moved"}}
    spaces |= {"c": {"channels": 4, "scale": 9.0, "vae": "x"}, "d": None}
    for name, space in spaces.items():
        manifest = Manifest.read(write(tmp_path / name, ["x"]))
        replace(manifest, latents=space).write(tmp_path / name)
    assert open_shards(f"{tmp_path}/a:1,{tmp_path}/b:1").manifest.latents == spaces["a"]
    assert open_shards(f"{tmp_path}/a,{tmp_path}/d").manifest.latents is None  # not every sample has them
    with pytest.raises(ValueError, match=r"latents is .*1.5.* in .*a and .*9.0.* in .*c; make them alike"):
        open_shards(f"{tmp_path}/a,{tmp_path}/c")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_and_ranks_together_show_every_sample_once(tmp_path):
    """Three workers and two ranks on one shard: more workers than shards is no difficulty."""
    dataset = ShardDataset(write(tmp_path / "a", [str(i) for i in range(24)]))
    seen = []
    for rank in range(2):
        order = StepSampler(24, 4, steps=6, seed=0, rank=rank, world_size=2)
        loader = DataLoader(dataset, batch_sampler=order, collate_fn=list, num_workers=3)
        seen += [sample["text"] for batch in loader for sample in batch]
    assert sorted(seen, key=int) == [str(i) for i in range(24)]
