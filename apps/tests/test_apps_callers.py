"""Who may call ddt serve: with a key, under which names, and from which pages."""

import io

import pytest
from PIL import Image
from tiny_serve import client_of, tiny_pair

from ddt_apps.serve.engine import Engine


@pytest.fixture(scope="module")
def engine():
    with Engine(*tiny_pair(), slots=1, waiting=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def fox():
    file = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(file, "png")
    return file.getvalue()


def test_a_key_is_asked_for_but_for_health(engine):
    with client_of(engine, api_key="s3cret") as client:
        for key in (None, "Bearer wrong", "Basic s3cret", "Bearer s3cr\u00e9t", "s3cret"):
            headers = {} if key is None else {"Authorization": key.encode()}
            refused = client.get("/v1/models", headers=headers)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/health").status_code == 200 and client.get("/metrics").status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_pages_of_others_are_kept_out_unless_they_are_named(engine):
    origin = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    with client_of(engine, hosts=["localhost"], base_url="http://localhost") as client:
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=origin).headers
        assert client.options("/v1/images/generations", headers=origin).status_code == 405
        for host in ("example.org", "localhost.example.org", "[::1", ""):
            refused = client.get("/v1/models", headers={"Host": host})
            assert refused.status_code == 400 and "call it as localhost" in refused.json()["error"]["message"]
    with client_of(engine, hosts=["localhost", "::1"], base_url="http://localhost:8000") as client:
        for host in ("localhost", "LOCALHOST:8000", "[::1]:8000"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    with client_of(engine, api_key="key", origins=["https://example.org"]) as client:
        preflight = client.options("/v1/images/generations", headers=origin)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://example.org"
        other = client.get("/health", headers={"Origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers


def test_what_pages_of_others_send_is_refused_unless_they_are_named(engine, fox):
    """A form of any page may be sent here without CORS; what a browser says of its origin tells."""
    forms = (
        {"data": {"keep_tokens": 3}, "files": {"image": fox}},
        {"content": "x", "headers": {"Content-Type": "text/plain"}},
    )
    with client_of(engine, origins=["https://example.org"], base_url="http://localhost:8000") as client:
        for form in forms:
            for origin in ("https://example.com", "http://localhost:9000", "null", "https://example.org.example.com"):
                headers = {**form.get("headers", {}), "Origin": origin}
                refused = client.post("/v1/tokenize", **{**form, "headers": headers})
                assert refused.status_code == 403 and "--cors" in refused.json()["error"]["message"]
        for origin in ("http://localhost:8000", "https://localhost:8000", "https://example.org", None):
            headers = {} if origin is None else {"Origin": origin}  # programs say none
            assert client.post("/v1/tokenize", **forms[0], headers=headers).status_code == 200
        assert client.get("/health", headers={"Origin": "https://example.com"}).status_code == 200
