"""A source accounts for every file it holds: packed right, or named with the reason, whatever its makers did."""

import csv
import io
import json
import os
import random
import tarfile
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from ddt_data import PackConfig, Record, Refused, ShardDataset, check_folder, open_reader, pack_folder, pack_text

CONFIG = PackConfig(image_size=8, image_format="png")
MARK = b"\xef\xbb\xbf"
NOUNS = ("kite", "owl", "barn", "lamp")


def picture(colour="navy", kind="png"):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), colour).save(buffer, kind)
    return buffer.getvalue()


def lay(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, Path):
            path.symlink_to(data)
        else:
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def read(source, **options):
    """Return the kind, the records by name, and why the rest is refused, by name."""
    kind, found = open_reader(source, **options)
    found = list(found)
    records = {each.name: each for each in found if isinstance(each, Record)}
    return kind, records, {each.name: each.why for each in found if isinstance(each, Refused)}


def texts(records):
    return {name: record.text for name, record in records.items()}


def tar(members, **options):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            data = data if isinstance(data, bytes) else data.encode()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_every_file_of_a_folder_is_packed_or_named(tmp_path):
    """Folders of whatever people keep: no file goes missing."""
    stray = ["notes.md", "table.csv", "x.json", "more.txt", "movie.mp4", "raw.heic", "old.zip", "noending", "a b.xml"]
    for seed in range(40):
        rng = random.Random(seed)
        folder, files = tmp_path / str(seed), {}
        for number in range(rng.randint(1, 5)):
            place = rng.choice(["", "", "deep/", "deep/er/"])
            kind = rng.choice(["png", "PNG", "jpg", "jfif", "Jpe", "tiff", "gif"])
            files[f"{place}{number}.{kind}"] = picture(kind="gif" if kind == "gif" else "png")
            for words in rng.sample(["txt", "TXT", "caption", "json"], rng.randint(0, 1)):
                files[f"{place}{number}.{words}"] = '{"caption": "a kite"}' if words == "json" else "a kite"
        for name in rng.sample(stray, rng.randint(0, 5)):
            files[rng.choice(["", "deep/"]) + name] = "something"
        hidden = {".cache/thumb.png": picture(), "deep/.old.png": picture(), "@eaDir/1.png": picture()}
        lay(folder, files | hidden)
        manifest = pack_folder(folder, tmp_path / f"{seed}.out", CONFIG)
        samples = {sample["meta"]["source"]: sample for sample in ShardDataset(tmp_path / f"{seed}.out")}
        beside = {name for name in files for each in samples if name.rpartition(".")[0] == each.rpartition(".")[0]}
        named = {entry["name"] for entry in manifest.skipped}
        unfit = {name for name in files if any(name.rpartition(".")[0] == each.rpartition(".")[0] for each in named)}
        assert set(files) <= set(samples) | named | beside | unfit, seed
        assert not {name for name in [*samples, *named] if name in hidden}


@pytest.mark.parametrize("stem", ["captions", "Metadata", "CAPTIONS"])
@pytest.mark.parametrize("ending", ["csv", "TSV", "Csv", "JSONL"])
def test_lists_are_found_and_read_however_they_are_written(tmp_path, stem, ending):
    rows = [{"File_Name": f"{noun}.png", "TEXT": f"a {noun}; big, red\tone", "by": "me"} for noun in NOUNS]
    for separator in ",;\t|":
        for mark in (b"", MARK):
            for newline in ("\n", "\r\n", "\r"):
                file = io.StringIO()
                if ending == "JSONL":
                    file.writelines(json.dumps(row) + newline * 2 for row in rows)
                else:
                    table = csv.DictWriter(file, rows[0], delimiter=separator, lineterminator=newline)
                    table.writeheader()
                    table.writerows(rows)
                folder = tmp_path / f"{ord(separator)}{len(mark)}{newline!r}".replace("\\", "")
                data = mark + file.getvalue().encode()
                lay(folder, {f"{noun}.png": picture() for noun in NOUNS} | {f"{stem}.{ending}": data})
                kind, records, refused = read(folder)
                assert kind == "captions" and not refused
                assert texts(records) == {f"{noun}.png": f"a {noun}; big, red one" for noun in NOUNS}
                assert records["owl.png"].meta == {"by": "me"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.png,an owl, small", "3 cells, the header names 2"),
        ('a.png,"an owl', "never closes"),
        ('a.png,"an" owl', "quotes do not match"),
        ("a.png", "correct the line"),
        ("a.png,\udcf6", "not UTF-8"),
    ],
)
def test_a_line_of_a_table_that_is_not_sure_is_refused_by_its_number(tmp_path, line, words):
    text = f"file_name,text\nb.png,a kite\n{line}\n"
    data = {"captions.csv": text.encode("utf-8", "surrogateescape"), "a.png": picture(), "b.png": picture()}
    _, records, refused = read(lay(tmp_path, data))
    assert texts(records) == {"b.png": "a kite"}
    assert any(name.startswith("captions.csv, line 3") and words in why for name, why in refused.items())


@pytest.mark.parametrize("header", ["picture,words", "file_name,label", "file_name,text,TEXT", "a.png,a kite"])
def test_a_table_without_the_columns_names_those_it_has(tmp_path, header):
    lay(tmp_path, {"metadata.csv": f"{header}\nx.png,y\n", "a.png": picture()})
    with pytest.raises(
        ValueError, match=r"metadata\.csv: its columns are .*needs one file_name.*kind 'folder'"
    ) as caught:
        read(tmp_path)
    assert header.split(",")[0] in str(caught.value)
    assert set(read(tmp_path, kind="folder")[2]) == {"metadata.csv"}


def test_columns_that_another_one_hides_are_kept(tmp_path):
    rows = {"file_name": "a.png", "path": "/archive/9", "text": "a kite", "caption": "drachen", "source": "a museum"}
    lay(tmp_path / "s", {"captions.jsonl": json.dumps(rows), "a.png": picture()})
    pack_folder(tmp_path / "s", tmp_path / "o", CONFIG)
    meta = ShardDataset(tmp_path / "o")[0]["meta"]
    assert meta == {"path": "/archive/9", "caption": "drachen", "original_source": "a museum", "source": "a.png"}


def test_words_beside_a_picture_are_those_of_any_ending(tmp_path):
    files = {f"{noun}.png": picture() for noun in NOUNS} | {"kite.TXT": MARK + b"a kite", "owl.Caption": "an owl"}
    files |= {"barn.json": MARK + b'{"Caption": "a barn", "width": 7}', "barn.txt": " \n"}
    files |= {"lamp.txt": "a lamp", "lamp.caption": "lamp, light"}
    _, records, refused = read(lay(tmp_path, files))
    assert texts(records) == {"kite.png": "a kite", "owl.png": "an owl", "barn.png": "a barn", "lamp.png": "a lamp"}
    assert records["barn.png"].meta["width"] == 7 and records["lamp.png"].meta["captions"] == ["a lamp", "lamp, light"]
    assert not refused


def test_texts_of_no_picture_make_no_captions(tmp_path):
    files = {"a.png": picture(), "b.png": picture(), "LICENCE.TXT": "free", "thoughts.txt": "none", "Thumbs.db": b"\0"}
    for list_of in ({}, {"captions.csv": "file_name,text\na.png,a kite\nb.png,an owl\n"}):
        folder = lay(tmp_path / str(len(list_of)), files | list_of)
        _, records, refused = read(folder)
        assert set(records) == {"a.png", "b.png"} and set(refused) == {"LICENCE.TXT", "thoughts.txt", "Thumbs.db"}
    strict = PackConfig(image_size=8, strict=True)
    (folder / "thoughts.txt").unlink()  # a README is no fault
    assert pack_folder(folder, tmp_path / "o", strict).samples == 2


@pytest.mark.parametrize("name", ["words.json", "labels.csv", "captions.txt", "train/metadata.jsonl", "tags.xml"])
def test_pictures_without_words_though_words_lie_there_are_told(tmp_path, name):
    _, records, refused = read(lay(tmp_path, {"a.png": picture(), "b.png": picture(), name: '["a kite"]'}))
    assert texts(records) == {"a.png": None, "b.png": None}
    assert "picture" in refused[name] and refused[name].startswith("not read: ")


def test_json_lists_are_found_under_any_name_in_the_folder_of_their_pictures(tmp_path):
    coco = {"images": [{"id": "x", "file_name": "a.png"}], "annotations": [{"image_id": "x", "caption": "a kite"}]}
    turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": 12}]
    llava = [{"image": "a.png", "conversations": turns}]
    for kind, found in (("coco", coco), ("llava", llava)):
        folder = lay(tmp_path / kind, {"a.png": picture(), "b.png": picture(), "Train.JSON": json.dumps(found)})
        got, records, refused = read(folder)
        assert got == kind and len(records) == 1 and list(refused) == ["b.png"] and "Train.JSON" in refused["b.png"]
    assert next(iter(records.values())).meta["questions"][0]["answer"] == "12"


def test_coco_entries_of_any_shape_are_used_or_named(tmp_path):
    images = [{"id": 1, "file_name": "a.png"}, {"file_name": "b.png"}, 5, {"id": {}, "file_name": "b.png"}]
    notes = [{"image_id": 1, "caption": text} for text in ("", "a kite", None, "a toy")]
    notes += [{"image_id": [1], "caption": "x"}, {"caption": "x"}, "x", {"image_id": 8, "caption": "x"}]
    lay(
        tmp_path,
        {"a.png": picture(), "b.png": picture(), "c.json": json.dumps({"images": images, "annotations": notes})},
    )
    _, records, refused = read(tmp_path / "c.json")
    assert texts(records) == {"a.png": "a kite"} and records["a.png"].meta["captions"] == ["a kite", "a toy"]
    named = {f"c.json, image {number}" for number in (1, 2, 3)} | {f"c.json, annotation {n}" for n in (0, 2, 4, 5, 6)}
    assert named | {"c.json, 1 ids"} == set(refused)


def test_members_of_a_tar_are_joined_in_any_order(tmp_path):
    members = [(f"{noun}.{kind}", picture() if kind == "png" else noun) for noun in NOUNS for kind in ("png", "txt")]
    for seed in range(12):
        rng = random.Random(seed)
        rng.shuffle(members)
        lay(tmp_path / str(seed), {"0.TAR": tar(members, format=rng.choice((0, 1, 2)))})
        _, records, refused = read(tmp_path / str(seed))
        assert texts(records) == {f"0.TAR/{noun}": noun for noun in NOUNS} and not refused


def test_tars_joined_to_one_file_are_read_to_the_end(tmp_path):
    parts = [tar([(f"{noun}.png", picture()), (f"{noun}.txt", noun)]) for noun in NOUNS]
    _, records, refused = read(lay(tmp_path, {"0.tar": b"".join(parts)}))
    assert texts(records) == {f"0.tar/{noun}": noun for noun in NOUNS} and not refused


def test_names_with_dots_hidden_members_and_members_of_other_kinds(tmp_path):
    members = [("./v1.05.png", picture()), ("./v1.05.txt", "one"), ("v1.06.PNG", picture()), ("v1.06.json", "{}")]
    members += [("._v1.05.png", b"\0"), ("__x/.DS_Store", b"\0"), ("k.png", picture()), ("k.mask.png", picture())]
    members += [("k.cls", "3"), ("k.target.png", picture()), ("k.json", '{"edit": {"instruction": "turn"}}')]
    _, records, refused = read(lay(tmp_path, {"0.tar": tar(members)}))
    assert texts(records) == {"0.tar/v1.05": "one", "0.tar/v1.06": None, "0.tar/k": None}
    assert records["0.tar/k"].target.read() == picture() and set(refused) == {"0.tar/*.cls", "0.tar/*.mask.png"}


def header(name=b"a.png", size=b"00000000000", kind=b"0"):
    block = bytearray(512)
    block[: len(name)], block[100:107], block[124 : 124 + len(size)] = name, b"0000644", size
    block[156:157], block[257:265], block[148:156] = kind, b"ustar\x0000", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(record):
    return header(b"p", b"%011o" % len(record), b"x") + record.ljust(512, b"\0") + header()


BAD_TARS = {
    "nothing": b"",
    "no files": bytes(10240),
    "other": b"<html>" * 500,
    "back": pax(b"14 size=-1024\n") + bytes(1024),
    "round": header(b"z.png") + pax(b"14 size=-1536\n") + bytes(1024),  # followed, it would never end
    "far back": pax(b"17 size=-9999999\n") + bytes(1024),
    "no number": pax(b"11 size=ten\n") + bytes(1024),
    "no record": pax(b"99999 size\n") + bytes(1024),
    "sparse": pax(b"23 GNU.sparse.map=1,,2\n") + bytes(1024),
    "nested": pax(b"11 path=aa\n")[:1024] * 5000 + header() + bytes(1024),
    "huge": header(size=b"77777777777") + bytes(1024),
    "half": tar([("a.png", picture()), ("b.png", picture()), ("c.png", picture())])[:3100],
}


@pytest.mark.parametrize("bad", BAD_TARS)
def test_a_bad_tar_is_refused_by_name_and_the_others_are_read(tmp_path, bad):
    good = tar([("x.png", picture()), ("y.png", picture())])
    lay(tmp_path / "s", {"0.tar": good, "1.tar": BAD_TARS[bad], "2.tar": good})
    manifest = pack_folder(tmp_path / "s", tmp_path / "o", CONFIG)
    names = {sample["meta"]["source"] for sample in ShardDataset(tmp_path / "o")}
    assert {"0.tar/x", "0.tar/y", "2.tar/x", "2.tar/y"} <= names
    assert any(entry["name"].startswith("1.tar/") for entry in manifest.skipped)


def test_a_damaged_header_in_a_tar_does_not_end_it_in_silence(tmp_path):
    data = bytearray(tar([(f"{noun}.png", picture()) for noun in NOUNS], format=tarfile.USTAR_FORMAT))
    data[data.index(b"barn.png") + 148] ^= 1  # its checksum
    _, records, refused = read(lay(tmp_path, {"0.tar": bytes(data)}))
    assert set(records) == {"0.tar/kite", "0.tar/owl"} and "damaged" in refused["0.tar/"]


def test_links_lead_to_pictures_and_never_in_circles(tmp_path):
    disk = lay(tmp_path / "disk", {"b.png": picture(), "sub/c.png": picture()})
    source = lay(
        tmp_path / "s",
        {"a.png": picture(), "more": disk, "again": disk / "sub", "self": Path(), "d.png": disk / "b.png"},
    )
    lay(source, {"gone": Path("nowhere") / "folder", "lost.txt": tmp_path / "nowhere"})
    (disk / "sub" / "back").symlink_to(source)
    _, records, refused = read(source)
    assert sorted(os.path.realpath(record.image) for record in records.values()) == sorted(
        os.path.realpath(path) for path in (source / "a.png", source / "d.png", disk / "b.png", disk / "sub" / "c.png")
    )
    assert "lost.txt" in refused and str(tmp_path) not in str(refused)
    lay(source, {"captions.csv": "file_name,text\na.png,one\nd.png,two\nmore/b.png,three\nmore/../d.png,four\n"})
    assert set(texts(read(source)[1]).values()) == {"one", "two", "three"}


def test_names_are_the_same_in_any_normal_form_and_from_windows(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Jürgen née") for form in ("NFC", "NFD"))
    for there, said in ((composed, apart), (apart, composed)):
        folder = lay(tmp_path / str(len(there)), {f"sub/{there}.png": picture(), f"sub/{said}.txt": "a man"})
        assert list(texts(read(folder)[1]).values()) == ["a man"]
        (folder / f"sub/{said}.txt").unlink()
        lay(folder, {"captions.tsv": f"path\tcaption\nsub\\{said}.png\ta man\n"})
        assert list(texts(read(folder)[1]).values()) == ["a man"]


def test_images_are_looked_for_where_they_are_said_to_be(tmp_path):
    pictures = lay(tmp_path / "pictures", {"a.png": picture(), "b.png": picture()})
    coco = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a kite"}]}
    lists = {"x.csv": "image,caption\na.png,a kite\n", "x.jsonl": '{"path": "a.png", "text": "a kite"}'}
    lay(tmp_path / "lists", lists | {"x.json": json.dumps(coco)})
    for name in ("x.csv", "x.jsonl", "x.json"):
        assert texts(read(tmp_path / "lists" / name, images=pictures)[1]) == {"a.png": "a kite"}
    with pytest.raises(ValueError, match=r"images .* leave it out"):
        read(pictures, images=pictures)
    with pytest.raises(FileNotFoundError, match="images"):
        read(tmp_path / "lists" / "x.csv", images=tmp_path / "none")


def test_class_folders_keep_their_labels_beside_stray_files(tmp_path):
    files = {f"{noun}/{number}.png": picture() for noun in NOUNS for number in range(2)}
    strays = {"owl/desktop.ini": "x", "about.html": "x", ".ipynb_checkpoints/0.png": picture(), "kite/labels.csv": "x"}
    kind, records, refused = read(lay(tmp_path, files | strays))
    assert kind == "classes" and set(texts(records).values()) == set(NOUNS)
    assert set(refused) == {"owl/desktop.ini", "about.html", "kite/labels.csv"}


def test_shards_that_lie_in_the_source_are_not_its_pictures(tmp_path):
    source = lay(tmp_path / "s", {f"{noun}/1.png": picture() for noun in NOUNS})
    for out in ("shards", "shards2"):
        manifest = pack_folder(source, source / out, CONFIG)
        assert manifest.source == "classes s" and manifest.samples == len(NOUNS)
    assert [entry["name"] for entry in manifest.skipped] == ["shards/"]


def test_reasons_are_short_lines_that_may_be_shown(tmp_path):
    long = {"file_name": "\x1b[31m" + "x" * 5000, "text": "y"}
    inside = {"image": {"bytes": "A" * 100_000}, "text": "y"}
    deep = '{"file_name": "a.png", "text": "x", "more": ' + "[" * 400 + "]" * 400 + "}"
    lines = [json.dumps(long), json.dumps(inside), deep, '{"file_name": "a.png", "text": "a kite"}']
    lay(tmp_path / "s", {"captions.jsonl": "\n".join(lines), "a.png": picture(), "b.png": picture()[:50]})
    manifest = pack_folder(tmp_path / "s", tmp_path / "o", CONFIG)
    assert len(manifest.skipped) == 4
    assert all(len(entry["why"]) <= 200 and entry["why"].isprintable() for entry in manifest.skipped)


@pytest.mark.parametrize(
    "meta", [{"questions": "how many?"}, {"questions": [{"question": "What?", "answer": 3}]}, {"edit": "turn it"}]
)
def test_what_training_cannot_use_is_set_apart_and_named(tmp_path, meta):
    (key,) = meta
    lay(tmp_path / "s", {"0.tar": tar([("a.png", picture()), ("a.json", json.dumps({"caption": "a kite", **meta}))])})
    manifest = pack_folder(tmp_path / "s", tmp_path / "o", CONFIG)
    sample = ShardDataset(tmp_path / "o")[0]
    assert sample["meta"][f"original_{key}"] == meta[key] and key not in sample["meta"]
    assert [entry["name"] for entry in manifest.skipped] == [f"0.tar/a, {key}"]
    assert not check_folder(tmp_path / "o").unusable


@pytest.mark.parametrize("name", ["a.txt", "B.TXT", "c.jsonl", "D.JSONL"])
def test_texts_are_read_whatever_wrote_them(tmp_path, name):
    said = ["a kite", "an\u2028owl", "a\x85barn", "größe"]
    for mark in (b"", MARK):
        for newline in ("\n", "\r\n", "\r", "\n\n"):
            lines = [json.dumps({"text": text}, ensure_ascii=False) for text in said] if "L" in name.upper() else said
            (tmp_path / name).write_bytes(mark + newline.join(lines).encode() + newline.encode())
            out = tmp_path / f"{len(mark)}{newline!r}".replace("\\", "")
            pack_text(tmp_path / name, out)
            assert [sample["text"] for sample in ShardDataset(out)] == said
    (tmp_path / name).write_bytes(json.dumps({"text": "ö"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name}, line 1: not UTF-8; convert"):
        pack_text(tmp_path / name, tmp_path / "bad")


def test_columns_of_texts_that_are_not_kept_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a kite", "url": "x"}\n{"text": " "}\n')
    skipped = pack_text(tmp_path / "a.jsonl", tmp_path / "o").skipped
    assert "url" in skipped[1]["why"] and skipped[0]["name"] == "a.jsonl, line 2"


def test_a_source_that_changes_while_it_is_packed_is_an_error_of_one_line(tmp_path, monkeypatch):
    from ddt_data.shards import pack_pictures

    lay(tmp_path / "s", {f"{noun}.png": picture() for noun in NOUNS})
    first, read_record = tmp_path / "s" / "barn.png", pack_pictures.read_record

    def change(number, *rest):
        if number == 2:
            first.write_bytes(picture("white") + b"\0")
        return read_record(number, *rest)

    monkeypatch.setattr(pack_pictures, "read_record", change)
    with pytest.raises(ValueError, match="its source changed while it was made"):
        pack_folder(tmp_path / "s", tmp_path / "o", CONFIG)
    monkeypatch.undo()
    assert pack_folder(tmp_path / "s", tmp_path / "o", CONFIG).samples == len(NOUNS)
