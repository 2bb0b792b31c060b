"""Models by their ids on the Hub, which here is a cache on the disk: no network."""

import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig
from ddt_tokenizer.hub import local_folder, upload


@pytest.fixture
def tokenizer():
    encoder = EncoderConfig(patch_size=8, width=16, depth=1, num_heads=2, num_tokens=4)
    return DDTTokenizer(TokenizerConfig(image_size=16, encoder=encoder)).eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that puts a folder into the cache of the Hub as a repository."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def put(repo_id, folder):
        there = tmp_path / "cache" / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder, there / "snapshots" / ("a" * 40))
        (there / "refs").mkdir()
        (there / "refs" / "main").write_text("a" * 40)

    return put


def test_an_id_of_the_hub_is_loaded_like_a_folder(tmp_path, tokenizer, hub):
    tokenizer.save_pretrained(tmp_path / "run" / "tokenizer")
    hub("me/codec", tmp_path / "run")
    hub("me/alone", tmp_path / "run" / "tokenizer")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    for name in ("me/codec/tokenizer", "me/alone"):
        again = DDTTokenizer.from_pretrained(name)
        assert torch.equal(again.encode(images), tokenizer.encode(images))
    with pytest.raises(FileNotFoundError, match=r"'me/none' is neither a folder nor a model that the Hub has for you"):
        DDTTokenizer.from_pretrained("me/none")


def test_a_folder_stays_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for path in ("runs/mine", "runs/mine/tokenizer/deep", "/somewhere/else", "./a/b", "one"):
        assert str(local_folder(path)) == path.removeprefix("./")


def test_what_is_pushed_is_the_model_and_its_card(tmp_path, tokenizer, monkeypatch):
    sent = {}

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            sent["repo"] = (repo_id, private, exist_ok)
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, folder_path, repo_id, commit_message):
            shutil.copytree(folder_path, tmp_path / "sent")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert tokenizer.push_to_hub("me/mine", private=True, licence="cc-by-4.0") == "https://huggingface.co/me/mine"
    assert sent["repo"] == ("me/mine", True, True)
    assert DDTTokenizer.from_pretrained(tmp_path / "sent").fingerprint() == tokenizer.fingerprint()
    card = ModelCard.load(tmp_path / "sent" / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "ddt") and "ddt" in card.data.tags
    assert "4 ids of 512: 36 bits an image" in card.text and tokenizer.fingerprint() in card.text
    assert "No licence of the weights was given." in tokenizer.card("me/mine")


def test_a_hub_that_refuses_is_one_line(tmp_path, hub):
    with pytest.raises(ValueError, match=r"'me/mine' could not be written .* log in with: hf auth login"):
        upload(tmp_path, "me/mine")
