"""Graphs of a tokenizer for engines without torch."""

import numpy as np
import pytest
import torch

from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig
from ddt_tokenizer.onnx_export import ImagesToIds, export_onnx
from ddt_tokenizer.quantizers.binary import BinaryConfig
from ddt_tokenizer.quantizers.scalar import ScalarConfig
from ddt_tokenizer.quantizers.vector import VectorConfig

SMALL = {"patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "num_tokens": 4}
KINDS = {
    "rate": TokenizerConfig(
        image_size=16, encoder=EncoderConfig(**SMALL), quantizer=VectorConfig(codebook_size=5000, rate=0.05)
    ),
    "haar, fsq": TokenizerConfig(
        image_size=16, encoder=EncoderConfig(**SMALL, start="haar"), quantizer=ScalarConfig(levels=(8, 5, 4))
    ),
    "spatial, lfq": TokenizerConfig(
        image_size=16, encoder=EncoderConfig(**SMALL, mode="spatial", start="grid"), quantizer=BinaryConfig()
    ),
    "one way": TokenizerConfig(
        image_size=16,
        encoder=EncoderConfig(
            **SMALL,
            attention="one_way",
            image_width=8,
            image_heads=1,
            query_position="adaln",
            position_table=4,
            causal=True,
        ),
    ),
}


def built(kind):
    torch.manual_seed(0)
    tokenizer = DDTTokenizer(KINDS[kind]).eval()
    if kind == "rate":
        tokenizer.quantizer.counts.uniform_(0, 5)
    return tokenizer


def images(count):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)) * 2 - 1


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_any_tokenizer_is_one_graph_for_any_batch(kind):
    tokenizer = built(kind)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    graph = torch.export.export(ImagesToIds(tokenizer), (images(2),), dynamic_shapes=shapes).module()
    for count in (2, 7):
        assert torch.equal(graph(images(count)), tokenizer.encode(images(count)))


def test_onnxruntime_writes_the_ids_of_the_model(tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    tokenizer = built("rate")
    export_onnx(tokenizer, tmp_path / "new" / "encoder.onnx")
    session = runtime.InferenceSession(tmp_path / "new" / "encoder.onnx")
    for count in (1, 2, 40):
        (ids,) = session.run(None, {"images": images(count).numpy()})
        wanted = tokenizer.encode(images(count)).numpy()
        assert ids.dtype == np.int64 and ids.shape == (count, 4)
        # Equal, but where rounding decides between two codes.
        z = tokenizer.quantizer.to_code_space(tokenizer.encoder(images(count)))
        floor = tokenizer.config.quantizer.dead_share * tokenizer.quantizer.counts.mean() + 1e-6
        worth = z @ tokenizer.quantizer.codebook.T + 0.05 * (tokenizer.quantizer.counts + floor).log()
        lost = worth.gather(2, torch.from_numpy(wanted)[..., None]) - worth.gather(2, torch.from_numpy(ids)[..., None])
        assert lost.abs().max() < 1e-5 and (ids == wanted).mean() > 0.99
    about = session.get_modelmeta().custom_metadata_map
    assert about["fingerprint"] == tokenizer.fingerprint() and about["num_tokens"] == "4"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["encoder.onnx"]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("ddt_tokenizer.onnx_file.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install onnx onnxscript"):
        export_onnx(built("rate"), tmp_path / "encoder.onnx")
