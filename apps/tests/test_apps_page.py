"""The page of ddt serve without a browser: what is sent, how much of it, and that it stands alone."""

import re
import zipfile
from pathlib import Path

import pytest
from tiny_serve import client_of, tiny_pair

import ddt_apps.serve
from ddt_apps.serve.engine import Engine

WEB = Path(ddt_apps.serve.__file__).with_name("web")
FILES = sorted(WEB.iterdir())
TEXTS = {file.name: file.read_text(encoding="utf-8") for file in FILES}


@pytest.fixture(scope="module")
def engine():
    with Engine(*tiny_pair(), slots=1, waiting=0) as engine:
        yield engine


def test_the_page_and_all_its_files_come_with_a_strict_policy(engine):
    with client_of(engine, api_key="s3cret") as client:
        page = client.get("/")
        assert page.text == TEXTS["index.html"] and page.headers["content-type"] == "text/html; charset=utf-8"
        sent = {"page.css": "text/css", "main.js": "text/javascript", "icon.svg": "image/svg+xml"}
        for name in TEXTS:
            answer = client.get(f"/web/{name}")
            assert answer.status_code == 200 and answer.text == TEXTS[name]
            policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
            assert {policy[kind] for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-type"].startswith(sent.get(name, ""))
        again = client.get("/", headers={"If-None-Match": page.headers["etag"]})
        assert again.status_code == 304 and client.post("/").status_code == 405
        for elsewhere in ("/web/", "/web/page.py", "/web/..%2fpage.py", "/web/none.js"):
            refused = client.get(elsewhere)
            assert refused.status_code == 404 and refused.json()["error"]["type"] == "invalid_request_error"


def test_the_model_says_what_the_page_must_know(engine):
    with client_of(engine) as client:
        (model,) = client.get("/v1/models").json()["data"]
    known = model["ddt"]
    assert (known["num_tokens"], known["image_size"], known["num_steps"]) == (8, 16, 2)
    assert known["visual_order"] == "coarse_to_fine" and known["tasks"] == ["draw", "edit", "ask", "chat"]
    defaults = {"draw": {"guidance": 1.5, "temperature": 0.7}, "edit": {"guidance": 1.0, "temperature": 0.0}}
    assert known["defaults"] == defaults
    with Engine(*tiny_pair("caption"), slots=1, waiting=0) as engine, client_of(engine) as client:
        known = client.get("/v1/models/tiny").json()["ddt"]
    assert known["tasks"] == ["draw", "caption"] and known["defaults"] == {"draw": defaults["draw"]}


def test_the_page_is_light_and_needs_no_other_server():
    assert sum(file.stat().st_size for file in FILES) < 100_000
    for name, text in TEXTS.items():
        found = set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"'`]*""", re.sub(r"^\s*//.*", "", text, flags=re.M)))
        assert found <= {"http://www.w3.org/2000/svg"}, f"{name}: {found}"
        assert not re.search(r"\beval\(|innerHTML|\son\w+=|\sstyle=", text), name  # the policy would refuse it


def test_scripts_find_what_they_name():
    here = set(re.findall(r'\bid="([\w-]+)"', TEXTS["index.html"]))
    scripts = "".join(text for name, text in TEXTS.items() if name.endswith(".js"))
    named = set(re.findall(r'getElementById\("([\w-]+)"\)', scripts))
    named |= set(re.findall(r'"((?:draw|edit|chat|swap|compare|gallery)-[\w-]+)"', scripts))
    assert len(named) >= 30 and named - here == set()
    html = TEXTS["index.html"]
    pointed = set(re.findall(r'(?:for|aria-controls|aria-labelledby)="([\w-]+)"', html))
    assert len(here) == len(re.findall(r'\bid="', html)) and pointed <= here
    assert set(re.findall(r'(?:href|src)="web/([\w.]+)"', html)) <= set(TEXTS)
    for text in TEXTS.values():
        assert set(re.findall(r'from "\./([\w.]+)"', text)) <= set(TEXTS)


def test_the_wheel_has_the_page(tmp_path):
    builders = pytest.importorskip("hatchling.builders.wheel")
    apps = Path(ddt_apps.serve.__file__).parents[3]
    if not (apps / "pyproject.toml").is_file():
        pytest.skip("installed, not a clone")
    (wheel,) = builders.WheelBuilder(str(apps)).build(directory=str(tmp_path), versions=["standard"])
    inside = zipfile.ZipFile(wheel).namelist()
    assert {f"ddt_apps/serve/web/{name}" for name in TEXTS} <= set(inside)
