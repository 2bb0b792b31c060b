"""Damaged inputs, a few hundred: `python scripts/fuzz.py COUNT SEED` does more."""

import sys
from pathlib import Path

import pytest

from ddt_data.readers import tars

sys.path.append(str(Path(__file__).parent.parent / "scripts"))
from fuzz import fuzz

COUNT = 400


@pytest.mark.parametrize("seed", [0, 1])
def test_damaged_inputs_are_packed_or_named_and_never_crash(seed):
    report = fuzz(COUNT, seed)
    assert report.inputs == COUNT and not report.uncaught and not report.lost, str(report)


def test_the_fuzz_finds_what_is_not_caught(monkeypatch):
    monkeypatch.setattr(tars, "DAMAGE", ())
    assert fuzz(50, 0).uncaught
