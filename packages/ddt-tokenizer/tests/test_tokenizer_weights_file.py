"""A safetensors file written tensor by tensor is what the library writes and reads."""

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig
from ddt_tokenizer.weights_file import NAMES, write_weights


@pytest.mark.parametrize("dtype", NAMES)
def test_every_dtype_is_read_back(dtype, tmp_path):
    torch.manual_seed(0)
    state = {
        "b": torch.randn(3, 5).mul(9).to(dtype),
        "a": torch.randn(7).to(dtype),
        "empty": torch.zeros(0, 2).to(dtype),
    }
    state["turned"] = state["b"].T
    write_weights(tmp_path / "ours.safetensors", state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "theirs.safetensors")
    ours, theirs = (load_file(tmp_path / f"{name}.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == dtype for name in theirs)
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_weights_say_whose_they_are(tmp_path):
    encoder = EncoderConfig(patch_size=4, width=16, depth=1, num_heads=2, num_tokens=4)
    tokenizer = DDTTokenizer(TokenizerConfig(image_size=16, encoder=encoder))
    tokenizer.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "model": "ddt-tokenizer", "fingerprint": tokenizer.fingerprint()}


def test_a_dtype_for_all(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"a": torch.arange(4).double(), "s": torch.tensor(3)}, torch.float32)
    assert torch.equal(load_file(tmp_path / "w.safetensors")["a"], torch.arange(4.0))
    assert load_file(tmp_path / "w.safetensors")["s"] == 3.0


def test_no_second_copy_is_in_memory(tmp_path):
    """Of 400 MB in eight tensors."""
    program = """
import resource, sys, torch
from pathlib import Path
from ddt_tokenizer.weights_file import write_weights
state = {str(i): torch.ones(50_000_000 // 4) for i in range(8)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_weights(Path(sys.argv[1]), state)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "w.safetensors")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 60_000 * (1 if sys.platform == "linux" else 1000)
    assert (tmp_path / "w.safetensors").stat().st_size > 400_000_000
