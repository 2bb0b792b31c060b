"""Real sets: what their packages hold becomes samples, split by stable keys, people capped."""

import gzip
import io
import json
import struct
import zipfile
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from ddt_data import ShardDataset, encode_image, is_held_out
from ddt_data.sets import easy_vqa as easy_vqa_module
from ddt_data.sets import emoji_records as emoji_module
from ddt_data.sets import fashion_mnist as fashion_module
from ddt_data.sets import passages as passages_module
from ddt_data.sets.emoji import STYLES, Concept, Drawing, concepts_of, join_icons, render_drawing
from ddt_data.sets.fetching import fetch_set

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def idx(array):
    sides = struct.pack(f">{array.ndim}i", *array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sides + array.tobytes())


def test_fashion_mnist(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    files, pictures = {}, {}
    for stem, count in (("train", 12), ("t10k", 5)):
        pictures[stem] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        files[f"usr/share/{stem}-images-idx3-ubyte.gz"] = idx(pictures[stem])
        files[f"usr/share/{stem}-labels-idx1-ubyte.gz"] = idx(np.arange(count, dtype=np.uint8) % 10)
    archive = zipped(tmp_path / "a.whl", files)
    monkeypatch.setattr(fashion_module, "fetch", lambda pinned, cache: archive)
    manifests = fetch_set("fashion-mnist", tmp_path / "out", image_size=28)
    assert {name: manifest.samples for name, manifest in manifests.items()} == {"train": 12, "held-out": 5}
    sample = ShardDataset(tmp_path / "out" / "train")[9]
    assert sample["text"] == "an ankle boot" and sample["meta"]["label"] == "ankle boot"
    assert (sample["image"] == pictures["train"][9][:, :, None]).all()
    assert manifests["train"].parts[0]["licence"] == "MIT" and "Zalando" in (tmp_path / "out" / "NOTICE").read_text()
    before = (tmp_path / "out" / "train" / "000000.tar").stat().st_mtime_ns
    assert fetch_set("fashion-mnist", tmp_path / "out", image_size=28) == manifests
    assert (tmp_path / "out" / "train" / "000000.tar").stat().st_mtime_ns == before  # finished splits stay


def test_easy_vqa(tmp_path, monkeypatch):
    files = {}
    for folder in ("train", "test"):
        questions = [["is it red?", "yes", 1], ["what shape?", "circle", 0], ["is it blue?", "no", 1]]
        files[f"easy_vqa/data/{folder}/questions.json"] = json.dumps(questions)
        for number in range(2):
            files[f"easy_vqa/data/{folder}/images/{number}.png"] = encode_image(np.zeros((8, 8, 3), np.uint8))
    archive = zipped(tmp_path / "a.whl", files)
    monkeypatch.setattr(easy_vqa_module, "fetch", lambda pinned, cache: archive)
    fetch_set("easy-vqa", tmp_path / "out", image_size=8)
    train = ShardDataset(tmp_path / "out" / "train")
    assert [[q["answer"] for q in sample["meta"]["questions"]] for sample in train] == [["circle"], ["yes", "no"]]
    assert len(ShardDataset(tmp_path / "out" / "held-out")) == 2


def test_texts_are_split_by_work_and_wikipedia_needs_agreement(tmp_path, monkeypatch):
    def fake(pinned, share_alike, cache):
        assert share_alike or not pinned.share_alike
        works = {f"data/{i:03}.txt": f"{pinned.name} {i} speaks. It ends here." for i in range(60)}
        articles = {f"Article {i}": {"extract": f"Article {i} speaks."} for i in range(60)}
        files = {"x/summaries_en-us.json": json.dumps(articles)} if pinned.share_alike else works
        return zipped(tmp_path / f"{pinned.version}-{len(pinned.name)}.whl", {**files, "data/data.txt": "all of it"})

    monkeypatch.setattr(passages_module, "fetch", fake)
    for share_alike, works in ((False, 120), (True, 180)):
        out = tmp_path / f"out-{share_alike}"
        manifests = fetch_set("text", out, share_alike=share_alike)
        train, held_out = ([s["text"] for s in ShardDataset(out / name)] for name in ("train", "held-out"))
        assert len(train) + len(held_out) == works and not set(train) & set(held_out)
        assert 0.03 * works < len(held_out) < 0.25 * works
        assert sum(part["samples"] for part in manifests["train"].parts) == len(train)
        assert ("Wikipedia" in (out / "NOTICE").read_text()) == share_alike


def concepts():
    """Sixty things, and twenty persons in six tones, each as a woman, a man and either."""
    things = [Concept(f"1f{i:03x}", f"1f{i:03x}", f"thing {i}", "", ("a", "b", "c"), "objects") for i in range(60)]
    people = []
    for i in range(20):
        for number, who in enumerate(("person", "woman", "man")):
            base = f"2f{i:02x}{number}"
            people.append(Concept(base, base, f"{who} {i}", "", ("x",), "people body"))
            for tone in TONES:
                label = f"{who} {i}: {tone} skin tone"
                people.append(Concept(f"{base}-{tone}", base, label, tone, ("x",), "people body"))
    return things + people


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """The set made of synthetic drawings: the colour tells which."""
    all_concepts = concepts()

    def draw(style, found, share_alike, cache):
        buffers = []
        for number, concept in enumerate(found):
            colour = (number % 256, number // 256, list(STYLES).index(style) * 20, 255)
            buffer = io.BytesIO()
            Image.new("RGBA", (4, 4), colour).save(buffer, "png")
            buffers.append(Drawing(concept, style, buffer.getvalue()))
        return buffers

    out = tmp_path_factory.mktemp("emoji")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(emoji_module, "load_concepts", lambda cache: all_concepts)
        monkeypatch.setattr(emoji_module, "load_style", draw)
        manifests = fetch_set("emoji", out, image_size=4)
    samples = {name: list(ShardDataset(out / name)) for name in manifests}
    return {concept.label: concept for concept in all_concepts}, samples


def test_no_emoji_is_on_both_sides_in_any_style_or_tone(emoji):
    known, samples = emoji
    sides = defaultdict(set)
    for name, found in samples.items():
        for sample in found:
            sides[known[sample["meta"]["label"]].base].add("held-out" in name)
    assert all(len(side) == 1 for side in sides.values())
    assert 4 <= sum(side == {True} for side in sides.values()) <= 25
    drawn = sum(len(samples[name]) for name in ("train", "held-out", "tones", "tones-held-out"))
    assert drawn == len(known) * 9  # each drawing once; the share-alike styles are left out


def test_people_are_capped_at_one_tone_for_each_person_and_style(emoji):
    known, samples = emoji
    tones = Counter()
    for sample in samples["train"] + samples["held-out"]:
        concept = known[sample["meta"]["label"]]
        tones[sample["meta"]["style"], concept.base] += bool(concept.tone)
    assert max(tones.values()) == 1
    assert sum(tones.values()) == 60 * 9
    assert all(known[sample["meta"]["label"]].tone for sample in samples["tones"])


def test_edits_are_pairs_of_drawings_with_the_right_words(emoji):
    known, samples = emoji
    labels = list(known)
    kinds = Counter()
    for sample in samples["edits"] + samples["edits-held-out"]:

        def shown(picture):
            red, green, blue = map(int, picture[0, 0])
            return labels[red + 256 * green], list(STYLES)[blue // 20]

        (source, style), (target, new_style) = shown(sample["image"]), shown(sample["target"])
        edit = sample["meta"]["edit"]
        kinds[edit["kind"]] += 1
        assert (source, style) == (sample["meta"]["label"], sample["meta"]["style"])
        if edit["kind"] == "style":
            assert source == target and edit["instruction"] == f"redraw it in the {new_style} style"
        elif edit["kind"] == "tone":
            assert known[source].base == known[target].base and style == new_style
            assert edit["instruction"] == f"change the skin tone to {known[target].tone}"
        else:
            assert edit["instruction"] == f"make it a {target.split()[0]}" and style == new_style
            assert source.split()[1] == target.split()[1]
    together = sum(is_held_out(f"emoji 2f{i:02x}1") == is_held_out(f"emoji 2f{i:02x}2") for i in range(20))
    assert kinds == {"style": 120 * 9, "tone": 2 * 60 * 9, "gender": 2 * together * 9}


def test_tones_and_groups_come_from_the_list_of_names():
    hand = {"hexcode": "1F44B", "label": "waving hand", "tags": ["wave"], "group": 1}
    hand["skins"] = [
        {"hexcode": "1F44B-1F3FF", "label": "waving hand: dark skin tone", "tone": 5, "group": 1},
        {
            "hexcode": "1F44B-1F3FB-1F3FF",
            "label": "waving hand: light skin tone, dark skin tone",
            "tone": [1, 5],
            "group": 1,
        },
    ]
    found = concepts_of([hand], {"1": "people-body"})
    assert [concept.tone for concept in found] == ["", "dark", "light and dark"]
    assert {concept.base for concept in found} == {"1f44b"} and found[0].group == "people body"


def test_icons_are_joined_by_code_point_name_and_alias_and_drawn():
    found = [Concept(code, code, label, "", (), "x") for code, label in (("1", "a fox"), ("2", "bell"), ("3", "gone"))]
    square = '<rect width="8" height="8" fill="#ff0000"/><use xlink:href="#none"/>'
    half = '<rect width="4" height="8" fill="#0000ff"/>'
    icons = {
        "icons": {"fox-face": {"body": square}, "ringer": {"body": half, "left": 0}},
        "aliases": {"bell": {"parent": "ringer", "hFlip": True}},
        "width": 8,
        "height": 8,
    }
    fox, bell = join_icons("Noto", found, icons, {"1": "fox-face"})
    pictures = [np.asarray(Image.open(io.BytesIO(render_drawing(drawing, 8)))) for drawing in (fox, bell)]
    assert (pictures[0] == (255, 0, 0, 255)).all()
    assert (pictures[1][:, 4:] == (0, 0, 255, 255)).all() and (pictures[1][:, :4, 3] == 0).all()


def test_an_unknown_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"set 'coco' is not known; use emoji"):
        fetch_set("coco", tmp_path)
    assert not list(tmp_path.iterdir())
