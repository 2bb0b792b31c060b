"""Two hundred malformed requests to ddt serve: each is refused in OpenAI's format or answered, none is a failure."""

import base64
import io
import json
import random

from PIL import Image
from tiny_serve import client_of, tiny_pair

from ddt_apps.serve.engine import Engine

PATHS = {
    "/v1/images/generations": {"prompt": "a fox", "n": 1, "size": "auto", "seed": 1, "quality": "low", "stream": False},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a fox"}], "max_tokens": 2, "temperature": 0.5},
    "/v1/tokenize": {"image": "data:image/png;base64,", "keep_tokens": 2},
    "/v1/detokenize": {"ids": [[1, 2], [3, 4]], "keep_tokens": 1, "steps": 1},
    "/v1/images/edits": {"image": ["data:image/png;base64,"], "prompt": "blue", "guidance": 2.0},
}
STRANGE = [None, True, -1, 0, 10**30, 1e400, float("nan"), 0.5, "", "\ud800", "\x00" * 9, "x" * 40_000, [], {}, [[]]]
STRANGE += [[None], [[1, 2], [3]], [[1], 2], [["a"]], [10**20], {"role": "user"}, [{"role": []}], [{"role": "user"}]]
STRANGE += [[{"role": "user", "content": each}] for each in (3, [3], [{"type": []}], [{"type": "image_url"}], {})]
STRANGE += [[{"role": "assistant", "content": "a"}], [{"role": "user", "content": "a", "images": 3}], "auto" * 9]
STRANGE += ["data:image/png;base64,%%", "http://127.0.0.1/a.png", "data:text/html,<b>", "99999x99999", "0x0", "1e5"]


def pictures(rng):
    """Bytes that pretend to be a picture."""
    file = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(file, rng.choice(["png", "jpeg", "gif", "webp", "tiff"]))
    whole = bytearray(file.getvalue())
    for _ in range(rng.randrange(4)):
        whole[rng.randrange(len(whole))] = rng.randrange(256)
    return rng.choice([bytes(whole), bytes(whole[: rng.randrange(len(whole))]), rng.randbytes(50), b"<svg/>", b""])


def malformed(rng):
    """A path, and arguments of a request."""
    path = rng.choice(list(PATHS))
    body = dict(PATHS[path])
    if "image" in body:
        url = f"data:image/png;base64,{base64.b64encode(pictures(rng)).decode()}"
        body["image"] = rng.choice([url, [url], [url] * 20])
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice([*body, "stream_options", "modalities", "model", "partial_images", "nonsense", "\ud800"])
        body[name] = rng.choice(STRANGE)
        if rng.random() < 0.1:
            del body[name]
    way = rng.random()
    if way < 0.6:
        return path, {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}}
    if way < 0.75:
        files = [(rng.choice(["image", "image[]", "mask"]), pictures(rng)) for _ in range(rng.randrange(3))]
        fields = {
            name: str(value).encode("utf-8", "replace").decode() for name, value in body.items() if name.isascii()
        }
        return path, {"files": files or [("image", b"")], "data": fields}
    data = json.dumps(body).encode()
    data = rng.choice([data[: len(data) // 2], rng.randbytes(40), b"[" * 100_000, b"[]", b"", b"\xff\xfe" + data])
    boundary = "multipart/form-data; boundary=x"
    kinds = [
        "application/json",
        "text/plain",
        "multipart/form-data",
        boundary,
        boundary + "\x7f",
        "application/jsonx",
        "",
    ]
    return path, {"content": data, "headers": {"Content-Type": rng.choice(kinds)}}


def test_two_hundred_malformed_requests_never_fail():
    rng, statuses = random.Random(0), []
    with Engine(*tiny_pair(), slots=4, waiting=20) as engine, client_of(engine) as client:
        for _ in range(200):
            path, request = malformed(rng)
            answered = client.post(path, **request)
            statuses.append(answered.status_code)
            if answered.status_code != 200:
                assert 400 <= answered.status_code < 500, (path, request, answered.text)
                error = answered.json()["error"]
                assert error["message"] and set(error) == {"message", "type", "param", "code"}
        assert client.get("/health").status_code == 200 and engine.pending == 0 and not engine.batch.rows
    assert statuses.count(200) < 60 and {200, 400, 404, 415} <= set(statuses)
