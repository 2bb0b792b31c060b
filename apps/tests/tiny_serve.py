"""A tiny random model to be served, and ways to call it: what tests of ddt serve share.

They are skipped where the extra `serve` is not installed; to import this module first does that.
"""

import socket
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from ddt_decoder import DDTDecoder, DecoderConfig, MMDiTConfig
from ddt_llm import MultimodalLM, TinyLlamaConfig, expand_vocabulary, tiny_llama, train_text_tokenizer
from ddt_tokenizer import Codec, DDTTokenizer, EncoderConfig, TokenizerConfig, VectorConfig

for needed in ("starlette", "uvicorn", "prometheus_client", "python_multipart", "httpx2"):
    pytest.importorskip(needed)


def tiny_pair(template="instruction"):
    """A random language model and codec that belong together: 8 ids of 32 codes, 16 px, two steps of the decoder."""
    torch.manual_seed(0)
    encoder = EncoderConfig(patch_size=4, width=32, depth=1, num_heads=2, num_tokens=8)
    quantizer = VectorConfig(codebook_size=32, code_width=6)
    tokenizer = DDTTokenizer(TokenizerConfig(image_size=16, encoder=encoder, quantizer=quantizer)).eval()
    network = MMDiTConfig(patch_size=4, width=32, depth=1, num_heads=2, token_width=6)
    sizes = {"image_size": 16, "codebook_size": 32, "schedule": (4, 4), "num_steps": 2}
    decoder = DDTDecoder(DecoderConfig(**sizes, network=network))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    decoder.set_codebook(tokenizer.embed(torch.arange(32)), tokenizer.fingerprint())
    text_tokenizer = train_text_tokenizer(["a red fox", "what colour is the fox?", "make the fox blue"], vocab_size=300)
    model = tiny_llama(TinyLlamaConfig(width=32, depth=2, num_heads=2, max_positions=256), text_tokenizer)
    model, text_tokenizer = expand_vocabulary(model, text_tokenizer, codebook_size=32, num_tokens=8)
    with torch.no_grad():  # larger weights than at initialisation, so that predictions differ clearly
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return MultimodalLM(model, text_tokenizer, template, tokenizer.fingerprint()), Codec(tokenizer, decoder)


def client_of(engine, name="tiny", base_url="http://testserver", **settings):
    """A client that calls the application without a network."""
    from starlette.testclient import TestClient

    from ddt_apps.serve.app import build_app

    return TestClient(build_app(engine, name, **settings), base_url)


@contextmanager
def running(engine, name="tiny", **settings):
    """Serve on a free port of this machine; yields the address."""
    import uvicorn

    from ddt_apps.serve.app import build_app

    app = build_app(engine, name, **settings)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=60))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
