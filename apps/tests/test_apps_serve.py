"""ddt serve: the openai package drives it as it is; what it answers is what the packages give without it."""

import base64
import io
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_serve import client_of, running, tiny_pair
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.serve.bodies import MAX_BODY
from ddt_apps.serve.engine import Engine
from ddt_decoder import DDTRenderer
from ddt_tokenizer import Codec
from ddt_tokenizer.images import to_uint8

PROMPT = "a red fox"
LIKE_GENERATE = {"guidance_scale": 1.5, "temperature": 0.7}


@pytest.fixture(scope="module")
def pair():
    return tiny_pair()


@pytest.fixture(scope="module")
def engine(pair):
    """An engine of two slots, for which three may wait."""
    with Engine(*pair, slots=2, waiting=3) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    with client_of(engine) as client:
        yield client


@pytest.fixture(scope="module")
def address(engine):
    with running(engine) as address:
        yield address


@pytest.fixture(scope="module")
def openai(address):
    package = pytest.importorskip("openai")
    with package.OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def fox():
    """A picture, as the bytes of a file."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def data_url(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def pixels_of(b64_json):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))))


def drawn(codec, ids, keep=None):
    """What the codec draws without a server, as pixels."""
    return to_uint8(codec.decode(ids[None], **({} if keep is None else {"keep_tokens": keep})))[0]


def test_generations_are_those_of_the_packages(openai, pair):
    lm, codec = pair
    response = openai.images.generate(prompt=PROMPT, model="tiny", n=3, extra_body={"seed": 7})
    for i, picture in enumerate(response.data):
        alone = lm.generate(PROMPT, codec, output="image", seed=7 + i, **LIKE_GENERATE)
        assert picture.ids == alone.ids[0].tolist() and picture.seed == 7 + i
        np.testing.assert_array_equal(pixels_of(picture.b64_json), to_uint8(alone.images)[0])
    usage = response.usage
    assert usage.output_tokens_details.image_tokens == 3 * 8 and usage.input_tokens == usage.total_tokens - 24 > 0
    assert response.size == "16x16"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_partial_images_are_the_drawings_of_the_coarsest_ids(openai, pair, count):
    lm, codec = pair
    ids = lm.generate(PROMPT, codec, output="image", seed=3, **LIKE_GENERATE).ids[0]
    stream = openai.images.generate(prompt=PROMPT, stream=True, partial_images=count, extra_body={"seed": 3})
    *partial, last = stream
    assert [event.partial_image_index for event in partial] == list(range(count))
    for event, keep in zip(partial, [8 >> halvings for halvings in range(count, 0, -1)], strict=True):
        assert event.type == "image_generation.partial_image"
        np.testing.assert_array_equal(pixels_of(event.b64_json), drawn(codec, ids, keep))
    assert last.type == "image_generation.completed" and last.ids == ids.tolist() and last.usage.output_tokens == 8
    np.testing.assert_array_equal(pixels_of(last.b64_json), drawn(codec, ids))


@pytest.mark.parametrize(("quality", "keep", "steps"), [("low", 2, 1), ("medium", 4, 1), ("high", 8, 2)])
def test_less_quality_is_the_same_picture_from_fewer_ids(openai, pair, quality, keep, steps):
    lm, codec = pair
    ids = lm.generate(PROMPT, codec, output="image", seed=3, **LIKE_GENERATE).ids[0]
    (picture,) = openai.images.generate(prompt=PROMPT, quality=quality, extra_body={"seed": 3}).data
    assert picture.ids == ids[8 - keep :].tolist()
    expected = to_uint8(codec.decode(ids[None], keep_tokens=keep, num_steps=steps))[0]
    np.testing.assert_array_equal(pixels_of(picture.b64_json), expected)


def test_edits_take_pictures_as_files(openai, pair, fox):
    lm, codec = pair
    picture = Image.open(io.BytesIO(fox))
    alone = lm.generate([picture, "make the fox blue"], codec, output="image", temperature=0)
    (edited,) = openai.images.edit(image=("fox.png", fox), prompt="make the fox blue").data
    assert edited.ids == alone.ids[0].tolist()
    both = lm.generate([picture, picture, PROMPT], codec, output="image", seed=1, guidance_scale=2.0)
    own = {"seed": 1, "guidance": 2, "temperature": 1}
    stream = openai.images.edit(image=[fox, fox], prompt=PROMPT, stream=True, partial_images=1, extra_body=own)
    partial, last = stream
    assert (partial.type, last.type) == ("image_edit.partial_image", "image_edit.completed")
    assert last.ids == both.ids[0].tolist() and last.usage.input_tokens_details.image_tokens == 16


def test_chat_takes_and_gives_text_and_pictures(openai, pair, fox):
    lm, codec = pair
    picture, question = Image.open(io.BytesIO(fox)), "what colour is the fox?"
    parts = [{"type": "image_url", "image_url": {"url": data_url(fox)}}, {"type": "text", "text": question}]
    settings = {"model": "tiny", "max_tokens": 9, "seed": 2}
    asked = {"messages": [{"role": "user", "content": parts}], "modalities": ["text"], **settings}
    answered = openai.chat.completions.create(**asked)
    like = {"text_temperature": 0, "max_text_tokens": 9, "seed": 2, **LIKE_GENERATE}
    alone = lm.generate([picture, question], codec, output="text", **like)
    assert answered.choices[0].message.content == alone.text and answered.usage.prompt_tokens > 8
    chunks = list(openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(each.choices[0].delta.content or "" for each in chunks[:-1]).strip() == alone.text
    assert chunks[-1].usage == answered.usage and chunks[-2].choices[0].finish_reason == "length"

    ids = codec.encode([picture])[0]
    talk = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "red", "images": parts[:1]},
        {"role": "user", "content": PROMPT},
    ]
    history = [([f"be brief {question}"], ["red", ids])]
    alone = lm.generate(PROMPT, codec, output="image", history=history, **like)
    asked = {"messages": talk, "modalities": ["image"], **settings}
    (image,) = openai.chat.completions.create(**asked).choices[0].message.images
    np.testing.assert_array_equal(pixels_of(image["image_url"]["url"].partition(",")[2]), to_uint8(alone.images)[0])
    *_, shown, _ = openai.chat.completions.create(**asked, stream=True)
    assert shown.choices[0].delta.images == [image]


def test_models_and_unknown_names(openai):
    (model,) = openai.models.list().data
    assert model.id == "tiny" and model.ddt["num_tokens"] == 8 and openai.models.retrieve("tiny") == model
    package = sys.modules["openai"]
    with pytest.raises(package.NotFoundError, match="there is tiny"):
        openai.images.generate(prompt=PROMPT, model="gpt-image-2")
    with pytest.raises(package.BadRequestError, match="did you mean guidance") as error:
        openai.images.generate(prompt=PROMPT, extra_body={"guidence": 2})
    assert error.value.param == "guidence" and error.value.type == "invalid_request_error"


def test_ids_go_out_and_come_in_whole_or_their_coarsest(client, pair, fox):
    _, codec = pair
    ids = codec.encode([Image.open(io.BytesIO(fox))])
    found = client.post("/v1/tokenize", files=[("image", fox)] * 2).json()
    assert found["ids"] == ids.tolist() * 2 and found["fingerprint"] == codec.fingerprint
    found = client.post("/v1/tokenize", json={"image": data_url(fox), "keep_tokens": 3}).json()["ids"]
    assert found == ids[:, 5:].tolist()
    for given, keep in ((ids.tolist(), 3), (found, None), (found[0], 8)):
        (picture,) = client.post("/v1/detokenize", json={"ids": given, "keep_tokens": keep}).json()["data"]
        np.testing.assert_array_equal(pixels_of(picture["b64_json"]), drawn(codec, ids[0], 3))
    (picture,) = client.post("/v1/detokenize", json={"ids": ids.tolist()}).json()["data"]
    np.testing.assert_array_equal(pixels_of(picture["b64_json"]), drawn(codec, ids[0]))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_pictures_go_out_in_the_size_and_format_asked_for(client, kind):
    asked = {"prompt": PROMPT, "size": "48x48", "output_format": kind, "output_compression": 60}
    (picture,) = client.post("/v1/images/generations", json={**asked, "response_format": "url"}).json()["data"]
    head, _, data = picture["url"].partition(",")
    assert head == f"data:image/{kind};base64"
    opened = Image.open(io.BytesIO(base64.b64decode(data)))
    assert opened.size == (48, 48) and opened.format == kind.upper()


@pytest.fixture
def steps(engine, monkeypatch):
    """Lets the engine take as many steps as are released, so that what happens between two can be seen.

    Those after which cancelled answers leave are free: whether they are cancelled before a step or within it is chance.
    """
    batch, step, allowed = engine.batch, engine.batch.step, threading.Semaphore(0)

    def paced():
        if batch.waiting or not all(writer.done for writer in batch.rows):
            allowed.acquire(timeout=60)
        return step()

    monkeypatch.setattr(batch, "step", paced)
    yield allowed
    allowed.release(1000)


def ask(address, body):
    """Send a request as a client that does not wait for its answer; returns its socket."""
    host, _, port = address.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    data = json.dumps(body).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def until(condition):
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_a_full_queue_sends_away_and_who_hangs_up_leaves_no_slot(engine, address, client, steps):
    first = [ask(address, {"prompt": PROMPT, "n": 2}), ask(address, {"prompt": PROMPT, "stream": True})]
    rest = [ask(address, {"prompt": PROMPT}) for _ in range(2)]
    assert until(lambda: engine.pending == 5)
    steps.release()
    assert until(lambda: len(engine.batch.rows) == 2)
    refused = client.post("/v1/images/generations", json={"prompt": PROMPT})
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert client.post("/v1/images/generations", json={"prompt": PROMPT, "n": 6}).status_code == 429
    assert client.get("/health").status_code == 200
    assert "ddt_slots_taken 2.0" in client.get("/metrics").text
    for connection in (*rest, *first):  # some wait, some are being written, one is a stream
        connection.close()
    assert until(lambda: engine.pending == 0)
    steps.release(100)
    assert until(lambda: not (engine.answers or engine.batch.rows or engine.batch.waiting))
    assert client.post("/v1/images/generations", json={"prompt": PROMPT}).status_code == 200


def test_who_hangs_up_within_a_stream_leaves_no_slot(engine, address, steps):
    for _ in range(3):
        with ask(address, {"prompt": PROMPT, "stream": True, "partial_images": 3}) as connection:
            steps.release(2)
            heard = b""
            while b"partial_image_index" not in heard:
                heard += connection.recv(2**16)
            assert len(engine.batch.rows) == 1
        assert until(lambda: engine.pending == 0)
        steps.release()
        assert until(lambda: not engine.batch.rows)


def test_a_step_that_fails_ends_its_answers_and_nothing_else(engine, client, monkeypatch, caplog):
    def fail():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.batch, "step", fail)
    failed = client.post("/v1/images/generations", json={"prompt": PROMPT})
    assert failed.status_code == 500 and failed.json()["error"]["type"] == "server_error"
    assert "memory" not in failed.text and "out of memory" in caplog.text
    assert client.post("/v1/images/generations", json={"prompt": PROMPT}).status_code == 200


def test_what_is_too_large_is_refused(client):
    def parts():
        for _ in range(MAX_BODY // 2**20 + 1):
            yield bytes(2**20)

    for body in (parts(), bytes(MAX_BODY + 1)):  # of a length that is not said, or is
        refused = client.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})
        assert refused.status_code == 413 and refused.json()["error"]["type"] == "invalid_request_error"
    bomb = io.BytesIO()
    Image.new("1", (8000, 8000)).save(bomb, "png")
    for asked in ({"files": {"image": bomb.getvalue()}}, {"json": {"image": data_url(bomb.getvalue())}}):
        refused = client.post("/v1/tokenize", **asked)
        assert refused.status_code == 400 and "pixels are more than" in refused.json()["error"]["message"]
    for asked, word in (({"prompt": "a " * 20_000}, "characters"), ({"prompt": "a b " * 500}, "prompt")):
        refused = client.post("/v1/images/generations", json=asked)
        assert refused.status_code == 400 and word in refused.json()["error"]["message"]
    assert client.post("/v1/tokenize", files=[("image", b"")] * 17).status_code == 400


@pytest.mark.parametrize("log_prompts", [False, True])
def test_prompts_are_in_the_log_only_if_asked_for(engine, caplog, log_prompts):
    caplog.set_level(logging.WARNING, "httpx2")  # the client's own log
    caplog.set_level(logging.INFO, "ddt_apps.serve")
    with client_of(engine, log_prompts=log_prompts) as client:
        client.post("/v1/images/generations", json={"prompt": "my secret\x1b[2J"})
        client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "my secret too"}]})
        client.get("/my-secret-page?q=my-secret")
    assert caplog.text.count("my secret") == 2 * log_prompts and "my-secret" not in caplog.text
    assert "POST /v1/images/generations 200" in caplog.text and "\x1b" not in caplog.text


def test_a_server_that_closes_says_so(pair):
    with Engine(*pair, slots=1, waiting=0) as engine, client_of(engine) as client:
        assert client.get("/health").json() == {"status": "ok"}
        engine.__exit__()
        assert client.get("/health").status_code == 503
        assert client.post("/v1/images/generations", json={"prompt": PROMPT}).status_code == 503


def test_a_model_that_only_draws_edits_nothing(fox):
    with Engine(*tiny_pair("caption"), slots=1, waiting=0) as engine, client_of(engine) as client:
        refused = client.post("/v1/images/edits", files={"image": fox}, data={"prompt": PROMPT})
        assert refused.status_code == 400 and "not tuned" in refused.json()["error"]["message"]
        for content in (PROMPT, [{"type": "image_url", "image_url": {"url": data_url(fox)}}]):
            asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
            message = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]
            assert bool(message.get("images")) == (content == PROMPT)


def test_a_stream_ends_before_the_server_does(engine, steps):
    with running(engine) as address:
        connection = ask(address, {"prompt": PROMPT, "stream": True, "partial_images": 3})
        steps.release(2)
        heard = connection.recv(2**16)
        threading.Timer(0.3, steps.release, (100,)).start()  # when the server is being stopped
    while more := connection.recv(2**16):
        heard += more
    connection.close()
    assert heard.count(b"event: image_generation.partial_image") == 3 and b"image_generation.completed" in heard


def test_the_command_serves_until_ctrl_c(pair, tmp_path):
    """As a process: it tells its address and what to try, draws by a renderer, and ends with 130 and one line."""
    lm, codec = pair
    codec.save_pretrained(tmp_path / "tokenizer")
    lm.save_pretrained(tmp_path / "lm" / "model")
    httpx2 = pytest.importorskip("httpx2")
    renderer = DDTRenderer.from_decoder(codec.decoder)
    renderer.save_pretrained(tmp_path / "drawer" / "renderer")
    command = [sys.executable, "-m", "ddt_apps", "serve", str(tmp_path / "lm"), "--port", "0", "--device", "cpu"]
    command += ["--renderer", str(tmp_path / "drawer")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        told, where, example = (process.stdout.readline() for _ in range(3))
        assert told.startswith("serving lm on http://127.0.0.1:") and example.startswith("curl http")
        address = told.split()[3].removesuffix(",")
        assert f"{address}/v1" in where and httpx2.get(address).text.startswith("<!doctype html>")
        for quality in ("high", "low"):  # the decoder draws from few ids, as this renderer cannot
            asked = {"prompt": PROMPT, "seed": 3, "quality": quality}
            answer = httpx2.post(f"{address}/v1/images/generations", json=asked, timeout=60)
            (picture,) = answer.json()["data"]
            missing = 8 - len(picture["ids"])
            ids = torch.tensor([0] * missing + picture["ids"])
            by = Codec(codec.tokenizer, codec.decoder, renderer=renderer)
            expected = drawn(by, ids, len(picture["ids"]) if missing else None)
            np.testing.assert_array_equal(pixels_of(picture["b64_json"]), expected)
        second = CliRunner().invoke(app, [*command[3:5], "--port", address.rpartition(":")[2]])
        assert second.exit_code == 2 and "name another, or --port 0" in second.output
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and said.splitlines()[-1] == "stopped" and "Traceback" not in said
