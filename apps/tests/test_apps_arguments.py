"""What people type: ~ in paths, places that cannot be written, numbers out of range, text that a terminal obeys."""

import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ddt_apps.cli.main import CONTINUING, app
from ddt_apps.run.config import load_config
from ddt_apps.run.devices import PRECISIONS, SHORT, pick_precision
from ddt_apps.run.outputs import PICTURES, try_file, try_folder
from ddt_apps.run.terminal import harmless
from ddt_apps.train.settings import SETTINGS
from ddt_data import ShardDataset
from ddt_data.shards.images import FILES


def ddt(*arguments, **options):
    """Run the command; returns its exit code and what it said as errors."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], **options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with shards in it, beside the current folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ddt("data", "scenes", "--out=~/shards", "--count", 4, "--level", "tiny")[0] == 0
    yield tmp_path / "home"
    assert not [name for name in os.listdir(here) if "~" in name]


def test_the_home_folder_is_found_behind_every_option(home):
    assert len(ShardDataset(home / "shards")) == 4
    assert ddt("data", "check", "~/shards", "--sheet=~/deep/sheet.png")[0] == 0
    assert (home / "deep" / "sheet.png").is_file()
    assert ddt("data", "peek", "~/shards:0.5, ~/shards:0.5", "--out", "~/batch.png", "--batch-size", 2)[0] == 0
    assert (home / "batch.png").is_file()
    for arguments in (
        ("tokenize", "~/shards", "--tokenizer", "~/none", "--out", "~/ids"),
        ("reconstruct", "~/fox.png", "--tokenizer=~/none", "--out=~/again.png"),
        ("generate", "~ a fox", "--model=~/none", "--out=~/fox.png"),
        ("evaluate", "scenes", "~/none"),
        ("chat", "--model=~/none"),
        *([("serve", "~/none", "--port=0")] if find_spec("uvicorn") else []),
        ("data", "latents", "~/shards", "--vae=~/none", "--out=~/latents"),
    ):
        code, said = ddt(*arguments)
        assert code == 2 and str(home / "none") in said and "~" not in said


def test_the_home_folder_is_found_in_every_setting(home):
    """But the name of a run, which is no path."""
    for cls in SETTINGS.values():
        texts = [each for each in fields(cls) if each.type in ("str", str, "str | None", str | None)]
        names = [each.name for each in texts if each.name not in ("name", "device", "visual_order", "level", "referee")]
        assert {"data", "model"} & set(names)
        needed = {"data": "d", "tokenizer": "t", "model": "m"}
        needed = {name: value for name, value in needed.items() if hasattr(cls, name) or name in names}
        for name in names:
            given = {**needed, name: "~/a:0.5,~/b c:0.5" if name == "data" else "~/a"}
            try:
                config = load_config(cls, None, [f"{key}={value}" for key, value in given.items()])
            except ValueError as error:  # such as init_from without other settings
                assert name in str(error)
                continue
            assert getattr(config, name) == given[name].replace("~", str(home))
        assert load_config(cls, None, [*(f"{k}={v}" for k, v in needed.items()), "name=~/a"]).name == "~/a"
    (home / "mine.yaml").write_text("data: ~/a\nname: b\n")
    assert load_config(SETTINGS["pretrain"], "~/mine.yaml").data == f"{home}/a"


@dataclass(frozen=True)
class Paths:
    folder: Path = Path("shards")
    some: tuple[str, ...] = ()
    maybe: str | None = None
    count: str | int = 1
    group: dict[str, Path] = field(default_factory=dict)


def test_the_home_folder_is_found_in_lists_and_groups(home):
    found = load_config(Paths, None, ["folder=~/f", "some=[~/a,b~]", "maybe=~/m", "count=~/c", "group.x=~/d"])
    assert found == Paths(home / "f", (f"{home}/a", "b~"), f"{home}/m", f"{home}/c", {"x": home / "d"})


ENDINGS = [".png", ".PNG", ".jpg", ".jpeg", ".webp"]


@pytest.mark.parametrize("seed", range(20))
def test_a_place_is_tried_before_the_work_and_nothing_is_left_of_that(tmp_path, seed):
    rng = random.Random(seed)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    above = Path(*rng.choices(["folder", "new", "newer"], k=rng.randint(0, 3)))
    try_file("--out", tmp_path / above / f"x{rng.choice(ENDINGS)}")
    try_folder("--out", tmp_path / above / "x")
    for bad, why in (
        (above / f"x{rng.choice(['', '.tga', '.pn', '.png.txt'])}", "must end in .png, .jpg, .jpeg, .webp"),
        (Path("file", above, "x.png"), "is no folder"),
        (Path("lost", above, "x.webp"), "is no folder"),
        (Path("folder", "x" * 300 + ".jpg"), "cannot be written: File name too long"),
    ):
        with pytest.raises(ValueError, match="^--out '.*" + why):
            try_file("--out", tmp_path / bad)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        try_file("--out", tmp_path / "folder.png")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "folder.png"])


@pytest.mark.parametrize(
    "verb",
    [
        "generate fox --model none",
        "edit fox.png blue --model none",
        "reconstruct fox.png --tokenizer none",
        "data peek none",
        "chat --model none",
        "tokenize none --tokenizer none",
        "data pack none",
        "data scenes",
        "data fetch emoji",
        "import-selftok none --vae none",
        "evaluate scenes none",
    ],
)
def test_every_out_is_tried_first(tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    code, said = ddt(*verb.split(), "--out", "file/x.png")
    assert code == 2 and said == f"error: --out 'file/x.png' cannot be made: '{tmp_path / 'file'}' is no folder\n"


@pytest.mark.parametrize("words", ["", "generate", "generat x", "generate --foo", "generate x --seed y --out o.png"])
def test_wrong_words_are_one_line(words):
    code, said = ddt(*words.split())
    lines = said.splitlines()
    assert code == 2 and (not words or (len(lines) == 1 and lines[0].startswith("error: ") and "; see: " in lines[0]))


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 10**30])
def test_a_seed_has_64_bits(seed):
    code, said = ddt("generate", "x", "--model", "none", "--out", "o.png", "--seed", seed)
    assert (code, said) == (2, f"error: --seed {seed} must be -9223372036854775808 to 9223372036854775807\n")


def test_short_names_of_precisions_are_those_of_lightning():
    from lightning.fabric.connector import _PRECISION_INPUT_STR_ALIAS_CONVERSION as SHORT_OF_LIGHTNING

    assert SHORT == SHORT_OF_LIGHTNING
    for device in map(torch.device, ("cpu", "cuda")):
        for short, long in SHORT.items():
            if (device.type, long) != ("cpu", "16-mixed"):
                assert pick_precision(short, device) == pick_precision(long, device) == long
        assert pick_precision(32, device) == "32-true"
    with pytest.raises(ValueError, match="16-mixed is none of the CPU; use precision=bf16-mixed"):
        pick_precision(16, torch.device("cpu"))
    for wrong in ("fp32", 8, "32-mixed", ""):
        with pytest.raises(ValueError, match=f"precision {wrong!r} must be auto, {', '.join(PRECISIONS)}"):
            pick_precision(wrong, torch.device("cpu"))
    for written in (32, "bf16", "16-true"):
        assert load_config(SETTINGS["sft"], None, ["data=d", "model=m", f"precision={written}"]).precision == written


def test_no_terminal_is_sent_what_it_obeys():
    rng = random.Random(0)
    for _ in range(200):
        ranges = rng.choices([range(0x20), range(0x7F, 0xA0), range(0x3000)], k=30)
        shown = harmless("".join(chr(rng.choice(each)) for each in ranges))
        assert not [c for c in shown if c not in "\n\t" and (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0)]
    for text in ("\u00fcber \u4e2d \U0001f469\u200d\U0001f680\n\t.", "", "".join(map(chr, range(0x20, 0x7F)))):
        assert harmless(text) == text
    assert harmless("a\udcff\u202eb\x9b2J") == "a\\udcff\\u202eb\\x9b2J"


def test_the_name_of_a_file_is_harmless_in_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = ddt("data", "check", "\x1b]0;mine\x07\nshards")
    assert code == 2 and "\x1b" not in said and said.count("\n") == 1 and "\\x1b]0;mine\\x07" in said


@pytest.mark.parametrize("verb", ["generate", "data check", "evaluate scenes", "pretrain", "data pack", "demo"])
def test_only_what_continues_says_so(verb):
    """A signal while the verb's own module is being loaded."""
    code = (
        "import sys, ddt_apps.cli.main as main\n"
        "class Stop:\n"
        "    ours = {'ddt_data', *(f'ddt_apps.{w}' for w in ('use', 'train', 'shards', 'evaluation', 'demo'))}\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in self.ours:\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        f"main.app({verb.split()!r} + sys.argv[1:])"
    )
    given = {"generate": "x --model m --out o.png", "data check": "d", "evaluate scenes": "m", "data pack": "d --out o"}
    words = given.get(verb, "tiny/pretrain data=d" if verb == "pretrain" else "").split()
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    again = "; run the same command again to continue where it was" if verb in CONTINUING else ""
    assert (result.returncode, result.stderr) == (130, f"\nstopped{again}\n")


def test_what_continues_is_a_verb():
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    verbs = {verb.name for verb in app.registered_commands}
    verbs |= {f"{name} {verb.name}" for name, group in groups.items() for verb in group.registered_commands}
    assert verbs > CONTINUING


def test_endings_of_pictures_are_those_that_are_written():
    assert set(PICTURES) == set(FILES)


@pytest.mark.parametrize(
    ("verb", "option", "bad", "rule"),
    [
        ("generate x --model m --out o.png", "--temperature", ["-1", "nan", "inf"], "must be at least 0"),
        ("generate x --model m --out o.png", "--guidance", ["nan", "inf", "-inf"], "must be a finite number"),
        ("generate x --model m --out o.png", "--keep", ["-1"], "must be at least 0"),
        ("chat --model m", "--text-temperature", ["-0.5", "nan"], "must be at least 0"),
        ("serve m", "--slots", ["0"], "must be at least 1"),
        ("serve m", "--queue", ["-1"], "must be at least 0"),
        ("reconstruct x.png --tokenizer t --out o.png", "--steps", ["0", "-3"], "must be at least 1"),
        ("tokenize s --tokenizer t --out o", "--batch-size", ["0"], "must be at least 1"),
        ("data peek s --out o.png", "--step", ["-1"], "must be at least 0"),
        ("data pack s --out o", "--workers", ["0"], "must be at least 1"),
        ("data fetch emoji --out o", "--image-size", ["0"], "must be at least 1"),
    ],
)
def test_a_number_out_of_range_is_named(verb, option, bad, rule):
    for value in bad:
        code, said = ddt(*verb.split(), option, value)
        assert code == 2 and said.startswith(f"error: {option} {value}") and said.endswith(f" {rule}\n")
        assert said.count("\n") == 1


def test_libraries_give_no_advice_to_those_who_type():
    """What our own code warns of is shown."""
    code = (
        "import sys, types, typer, warnings\n"
        "from ddt_apps.cli.main import Verbs\n"
        "app = typer.Typer(cls=Verbs)\n"
        "app.callback()(lambda: None)\n"
        "def warn(name, kind):\n"
        "    exec(f'import warnings; warnings.warn(\"of {name}\", {kind})', {'__name__': name})\n"
        "@app.command()\n"
        "def go():\n"
        "    for name in ('torch.nn', 'transformers', 'anything', 'ddt_llm.head'):\n"
        "        warn(name, 'UserWarning')\n"
        "    import transformers\n"
        "    transformers.utils.logging.get_logger('transformers').warning('of a logger')\n"
        "app(['go'])\n"
    )
    env = {key: value for key, value in os.environ.items() if not key.endswith(("VERBOSITY", "WARNINGS"))}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert result.returncode == 0 and re.findall(r"of [\w.]+", result.stderr) == ["of ddt_llm.head"]
