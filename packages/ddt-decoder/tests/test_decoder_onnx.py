"""Graphs of decoders and renderers for engines without torch."""

import numpy as np
import pytest
import torch

from ddt_decoder import DDTDecoder, DDTRenderer, DecoderConfig, MMDiTConfig
from ddt_decoder.flow import FlowConfig
from ddt_decoder.onnx_export import IdsToImages, export_onnx

NETWORK = {"patch_size": 8, "width": 16, "depth": 2, "num_heads": 2}
CONFIGS = {
    "x0": DecoderConfig(image_size=16, codebook_size=9, schedule=(6,), network=MMDiTConfig(**NETWORK, start="haar")),
    "velocity": DecoderConfig(
        image_size=16,
        codebook_size=9,
        schedule=(2, 4),
        network=MMDiTConfig(**NETWORK, token_modulation="position", table_side=4, tokens_see_patches=False),
        flow=FlowConfig(prediction="velocity", network_output="velocity"),
    ),
}


@torch.no_grad()
def built(kind):
    torch.manual_seed(0)
    decoder = DDTDecoder(CONFIGS[kind]).eval()
    for weight in decoder.network.parameters():  # none of them zero, as at the start
        weight.add_(0.1 * torch.randn_like(weight))
    decoder.set_codebook(torch.randn(9, 12), "abc")
    return decoder


def ids(count):
    return torch.randint(9, (count, 6), generator=torch.Generator().manual_seed(count))


def noise(count):
    return torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(s)) for s in range(count)])


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_step_is_one_graph_for_any_batch_and_prefix(kind):
    decoder = built(kind)
    inputs, any_batch = (ids(2), torch.tensor([6, 6]), noise(2)), {0: torch.export.Dim("batch", min=1)}
    graph = torch.export.export(IdsToImages(decoder), inputs, dynamic_shapes=(any_batch,) * 3).module()
    for count, keep in ((2, 6), (5, 2), (3, 0)):
        drawn = graph(ids(count), torch.full((count,), keep), noise(count))
        wanted = decoder.decode(ids(count), num_steps=1, keep_tokens=keep, seed=range(count))
        torch.testing.assert_close(drawn, wanted, rtol=0, atol=1e-5)


def test_a_renderer_is_exported_as_it_is():
    renderer = DDTRenderer.from_decoder(built("x0")).eval()
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    graph = torch.export.export(renderer, (ids(2),), dynamic_shapes=shapes).module()
    torch.testing.assert_close(graph(ids(7)), renderer(ids(7)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_onnxruntime_draws_the_images_of_the_model(tmp_path, kind):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    decoder, file = built(kind), tmp_path / "drawer.onnx"
    renders = kind == "x0"
    drawer = DDTRenderer.from_decoder(decoder, prefixes=True).eval() if renders else decoder
    export_onnx(drawer, file)
    session = runtime.InferenceSession(file)
    for count, keep in ((1, 6), (5, 3)):
        inputs = {"ids": ids(count).numpy(), "keep_tokens": np.full(count, keep)}
        more = {} if renders else {"num_steps": 1, "seed": range(count)}
        inputs |= {} if renders else {"noise": noise(count).numpy()}
        (images,) = session.run(None, inputs)
        wanted = drawer.decode(ids(count), keep_tokens=keep, **more).numpy()
        assert images.dtype == np.float32 and np.abs(images - wanted).max() < 1e-4 and wanted.std() > 0.1
    assert session.get_modelmeta().custom_metadata_map["tokenizer_fingerprint"] == "abc"
