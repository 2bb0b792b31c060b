"""Readers: every layout that people have becomes the same records, and what is wrong is named."""

import csv
import io
import json
import os
import pickle
import tarfile
from collections import Counter

import pytest
from PIL import Image

from ddt_data import PackConfig, Record, Refused, ShardDataset, open_reader, pack_folder
from ddt_data.readers import tables
from ddt_data.readers.layouts import find_reader
from ddt_data.readers.records import Span

COLOURS = {"a.jpg": "red", "b.png": "green", "sub/a.webp": "blue"}


def paint(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), colour).save(path)


def jpeg(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path):
    for name, colour in COLOURS.items():
        paint(tmp_path / "photos" / name, colour)
    return tmp_path / "photos"


def read(source, kind=None, **options):
    """Open a source, make sure that its kind is found out, and split its records from what is refused."""
    found, records = open_reader(source, **options)
    assert kind is None or found == kind
    records = list(records)
    good = {record.name: record for record in records if isinstance(record, Record)}
    return good, {record.name: record.why for record in records if isinstance(record, Refused)}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))


def texts(records):
    return {name: record.text for name, record in records.items()}


def test_pictures_alone_have_no_words(photos):
    records, refused = read(photos, "folder")
    assert texts(records) == dict.fromkeys(COLOURS) and not refused


def test_captions_beside_pictures(photos):
    write(photos, {f"{name}.txt": f"  picture\n{name} " for name in ("a", "b", "sub/a")})
    records, refused = read(photos, "folder")
    assert texts(records) == {"a.jpg": "picture a", "b.png": "picture b", "sub/a.webp": "picture sub/a"} and not refused


def test_class_folders(tmp_path):
    for name in ("polar_bear/1.png", "polar_bear/2.png", "fox/1.png"):
        paint(tmp_path / name)
    records, refused = read(tmp_path, "classes")
    assert texts(records) == {"fox/1.png": "fox", "polar_bear/1.png": "polar bear", "polar_bear/2.png": "polar bear"}
    assert records["polar_bear/1.png"].meta == {"label": "polar_bear"} and not refused
    paint(tmp_path / "stray.png")
    stray = [found for found in open_reader(tmp_path, "classes")[1] if isinstance(found, Refused)]
    assert [found.name for found in stray] == ["stray.png"] and "outside of the class folders" in stray[0].why


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_list_of_captions_keeps_its_other_columns(photos, ending):
    rows = [{"file_name": name, "text": f"a {name}", "photographer": "eve"} for name in COLOURS]
    with open(photos / f"captions.{ending}", "w", newline="") as file:
        if ending == "csv":
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n\n" for row in rows)
    for source in (photos, photos / f"captions.{ending}"):
        records, refused = read(source, "captions")
        assert texts(records) == {name: f"a {name}" for name in COLOURS} and not refused
        assert records["a.jpg"].meta == {"photographer": "eve"}


def test_a_csv_that_breaks_off_is_read_so_far(photos):
    lines = ["file_name,text", "a.jpg,a fox", 'b.png,"' + "x" * 200_000]
    (photos / "captions.csv").write_text("\n".join(lines))
    records, refused = read(photos, "captions")
    assert texts(records) == {"a.jpg": "a fox"} and any("what follows" in name for name in refused)


def test_a_parquet_of_captions(photos, monkeypatch):
    (photos / "captions.parquet").touch()
    monkeypatch.setattr(tables, "_parquet", lambda file: [{"path": "a.jpg", "caption": "a fox"}])
    assert texts(read(photos, "captions")[0]) == {"a.jpg": "a fox"}


def test_a_parquet_without_pyarrow_says_what_to_do(photos, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (photos / "captions.parquet").touch()
    with pytest.raises(ValueError, match="pip install pyarrow"):
        read(photos)


def test_coco_captions(photos, tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.png"}, {"id": 3, "file_name": "none.jpg"}]
    notes = [{"image_id": 1, "caption": "a fox "}, {"image_id": 1, "caption": "an animal"}]
    write(tmp_path, {"annotations/captions.json": {"images": images, "annotations": notes}})
    records, refused = read(tmp_path / "annotations/captions.json", "coco")
    assert texts(records) == {"a.jpg": "a fox"} and records["a.jpg"].meta == {"captions": ["a fox", "an animal"]}
    assert "no caption" in refused["b.png"] and "no such picture" in refused["none.jpg"]
    assert texts(read(tmp_path / "annotations/captions.json", images=photos)[0]) == {"a.jpg": "a fox"}


def test_llava_instructions(photos, tmp_path):
    def turns(*values):
        return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]

    entries = [
        {"id": 1, "image": "a.jpg", "conversations": turns("<image>\nWhat is it?", "A fox.", "And now?", "Still.")},
        {"id": 2, "image": "b.png", "conversations": turns("Alone?")},
        {"id": 3, "conversations": turns("What?", "That.")},
        {"id": 4, "image": "b.png", "conversations": turns("Draw it.", "<image>")},
        {"id": 5, "image": "../secret.png", "conversations": turns("What?", "That.")},
        {"id": 6, "image": "b.png", "conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]},
    ]
    paint(tmp_path / "secret.png")
    write(tmp_path, {"instructions.json": entries})
    records, refused = read(tmp_path / "instructions.json", "llava", images=photos)
    (record,) = records.values()
    assert [(q["question"], q["answer"]) for q in record.meta["questions"]] == [
        ("What is it?", "A fox."),
        ("And now?", "Still."),
    ]
    assert len(refused) == 5 and "leads out" in refused["instructions.json, entry 4"]


def test_edits_listed(photos):
    good = {"source": "a.jpg", "target": "b.png", "instruction": "make it green", "target_caption": "green"}
    lines = [good, {"source": "a.jpg", "target": "b.png"}, {"source": "a.jpg", "target": "x.png", "instruction": "x"}]
    write(photos, {"edits.jsonl": "\n".join(map(json.dumps, lines))})
    records, refused = read(photos, "edits")
    (record,) = records.values()
    assert record.meta == {"edit": {"kind": "instruction", "instruction": "make it green", "caption": "green"}}
    assert (record.image.name, record.target.name) == ("a.jpg", "b.png")
    assert "'instruction' is missing" in refused["edits.jsonl, line 2"] and "x.png" in refused["edits.jsonl, line 3"]


def test_edits_as_magicbrush_comes(tmp_path):
    for name in ("7-input.png", "7-output1.png"):
        paint(tmp_path / "images/7" / name)
    turn = {"input": "7-input.png", "output": "7-output1.png", "mask": "7-mask1.png", "instruction": "add a bell"}
    write(tmp_path, {"edit_turns.json": [turn, {**turn, "output": "7-output2.png"}, {"input": "7-input.png"}]})
    records, refused = read(tmp_path, "edits")
    assert [record.meta["edit"]["instruction"] for record in records.values()] == ["add a bell"] and len(refused) == 2


def test_edits_as_instructpix2pix_comes(tmp_path):
    for name in ("0001/11_0.jpg", "0001/11_1.jpg", "0001/12_0.jpg"):
        paint(tmp_path / name)
    prompt = {"edit": "make it blue", "input": "a fox", "output": "a blue fox"}
    write(tmp_path, {"0001/prompt.json": prompt, "0002/prompt.json": prompt, "0003/prompt.json": "{"})
    records, refused = read(tmp_path, "edits")
    assert texts(records) == {"0001/11_0.jpg": "a fox"} and records["0001/11_0.jpg"].target.name == "11_1.jpg"
    assert sorted(refused) == ["0001/12_0.jpg", "0002/prompt.json", "0003/prompt.json"]


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def test_tars_of_img2dataset(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for key, caption in (("000000001", "a fox"), ("000000002", "")):
            add(tar, f"{key}.jpg", jpeg())
            add(tar, f"{key}.txt", caption.encode())
            add(tar, f"{key}.json", json.dumps({"caption": caption, "url": "x"}).encode())
    write(tmp_path, {"00000_stats.json": {"count": 2}})
    records, refused = read(tmp_path, "webdataset")
    assert texts(records) == {"00000.tar/000000001": "a fox", "00000.tar/000000002": None} and not refused
    picture = records["00000.tar/000000001"].image
    assert isinstance(picture, Span) and picture.read() == jpeg()


def test_tars_with_bad_members(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "good.jpg", jpeg())
        add(tar, "../out.jpg", jpeg())
        add(tar, "good.jpg", jpeg("blue"))
        add(tar, "two.jpg", jpeg())
        add(tar, "two.png", jpeg())
        add(tar, "words.txt", b"alone")
        add(tar, "latin.jpg", jpeg())
        add(tar, "latin.txt", "größe".encode("latin-1"))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add(tar, "last.jpg", jpeg())
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(data[: len(jpeg()) + 1024])  # cut off within the second member
    (tmp_path / "2.tar").write_bytes(b"no tar" * 300)
    records, refused = read(tmp_path, "webdataset")
    assert sorted(records) == ["0.tar/good", "0.tar/last", "1.tar/good"]
    assert sorted(refused) == sorted(
        [f"0.tar/{n}" for n in ("../out.jpg", "good.jpg", "two", "words", "latin", "link.jpg")] + ["1.tar/", "2.tar/"]
    )
    pack_folder(tmp_path, tmp_path / "out", PackConfig(image_size=8))
    assert {sample["meta"]["source"] for sample in ShardDataset(tmp_path / "out")} == set(records)


def lay_out(folder):
    """Make a folder of each layout, with subfolders."""
    for name in COLOURS:
        paint(folder / "pictures" / name)
        paint(folder / "list" / name)
        paint(folder / "words" / name)
        write(folder / "words", {name.rsplit(".", 1)[0] + ".txt": name})
    write(folder / "list", {"captions.jsonl": "\n".join(json.dumps({"image": n, "text": n}) for n in COLOURS)})
    for name in ("fox/1.png", "fox/2.png", "owl/1.png"):
        paint(folder / "classes" / name)
    for number in ("001", "002"):
        write(folder / "pairs", {f"{number}/prompt.json": {"edit": "e", "input": "i", "output": "o"}})
        paint(folder / "pairs" / number / "7_0.jpg")
        paint(folder / "pairs" / number / "7_1.jpg")
    paint(folder / "edits" / "sub" / "a.png")
    write(folder / "edits", {"edits.jsonl": '{"source": "sub/a.png", "target": "sub/a.png", "instruction": "x"}'})
    (folder / "tars" / "sub").mkdir(parents=True)
    with tarfile.open(folder / "tars" / "0.tar", "w") as tar:
        add(tar, "fox.jpg", jpeg())
    return {path.name: path for path in folder.iterdir()} | {"one file": folder / "list" / "captions.jsonl"}


LAYOUTS = ("pictures", "words", "list", "one file", "classes", "pairs", "edits", "tars")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_pack_lists_each_folder_once(tmp_path, monkeypatch, layout):
    source, walks, listed = lay_out(tmp_path)[layout], [], Counter()
    walk, scandir, listdir = os.walk, os.scandir, os.listdir

    def counted(function):
        def count(path="."):
            if not isinstance(path, int):  # a folder that is open, of which rmtree knows no name
                listed[os.fspath(path)] += 1
            return function(path)

        return count

    monkeypatch.setattr(os, "walk", lambda *args, **options: walks.append(args[0]) or walk(*args, **options))
    monkeypatch.setattr(os, "scandir", counted(scandir))
    monkeypatch.setattr(os, "listdir", counted(listdir))
    assert pack_folder(source, tmp_path / "out", PackConfig(image_size=8, samples_per_shard=1)).samples
    assert len(walks) == 1
    assert all(listed[name] <= 1 for name in listed if ".out.part" not in name), listed
    if layout in ("pictures", "words", "list", "one file"):
        assert sum(str(tmp_path / "out") not in name and ".out.part" not in name for name in listed) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_processes_read_what_one_has_listed(tmp_path, monkeypatch, layout):
    source = lay_out(tmp_path)[layout]
    _, records = open_reader(source)
    records = list(records)
    _, read = find_reader(source, "auto", None)
    sent = pickle.dumps(read)
    for name in ("walk", "scandir", "listdir"):
        monkeypatch.setattr(os, name, None)
    assert list(pickle.loads(sent)()) == records and records


@pytest.mark.parametrize(
    ("files", "where", "words"),
    [
        ({"lost.txt": "x"}, "lost.txt", "caption without a picture; add lost.jpg"),
        ({"a.txt": "x"}, "b.png", "no caption"),
        ({"a.txt": " "}, "a.jpg", "empty"),
        ({"captions.jsonl": ""}, "a.jpg", "no caption in captions.jsonl"),
        ({"captions.jsonl": '{"file_name": "lost.jpg", "text": "x"}'}, "captions.jsonl, line 1", "no such picture"),
        ({"captions.jsonl": '\n{"file_name": "../../x", "text": "x"}'}, "captions.jsonl, line 2", "leads out"),
        ({"captions.jsonl": "oops"}, "captions.jsonl, line 1", "no JSON object"),
        ({"captions.jsonl": '{"file": "a.jpg"}'}, "captions.jsonl, line 1", "correct the line"),
        ({"captions.jsonl": '{"file_name": "a.jpg", "text": 5}'}, "captions.jsonl, line 1", "no text"),
        (
            {"captions.jsonl": "\n".join(['{"file_name": "a.jpg", "text": "x"}'] * 2)},
            "captions.jsonl, line 2",
            "a second caption for a.jpg",
        ),
    ],
)
def test_captions_that_do_not_fit_are_named(photos, files, where, words):
    write(photos, files)
    refused = read(photos)[1]
    assert words in refused[where] and "\n" not in refused[where]


def test_two_pictures_of_one_name_cannot_share_a_caption(photos):
    paint(photos / "a.png")
    write(photos, {"a.txt": "x", "b.txt": "x", "sub/a.txt": "x"})
    assert "shares its caption with a.jpg" in read(photos)[1]["a.png"]


def test_what_cannot_be_read_as_a_whole_is_refused(photos, tmp_path):
    write(photos, {"a.txt": "x", "captions.jsonl": ""})
    write(tmp_path, {"list.json": {}, "coco.json": "{", "empty/readme.md": "x"})
    for source, kind, words in (
        (tmp_path / "none", "auto", "no such folder"),
        (tmp_path / "empty", "auto", "holds no pictures"),
        (photos, "auto", "keep one kind"),
        (photos, "imagenet", "kind of source 'imagenet'"),
        (tmp_path / "list.json", "auto", "lists no pictures"),
        (tmp_path / "coco.json", "auto", "not JSON"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
            open_reader(source, kind)
        assert "\n" not in str(caught.value)
