"""The page of ddt serve in a real browser, headless Chromium, on a phone and a desktop: what a visitor does with it."""

import base64
import io
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_serve import running, tiny_pair

from ddt_apps.serve.engine import Engine

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
expect.set_options(timeout=20_000)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
phone_only = pytest.mark.parametrize("page", [PHONE], ids=["phone"], indirect=True)
desktop_only = pytest.mark.parametrize("page", [DESKTOP], ids=["desktop"], indirect=True)
TABS = ("Draw", "Edit", "Chat", "Swap ids", "Compare", "Gallery")


@pytest.fixture(scope="module")
def engine():
    with Engine(*tiny_pair(), slots=2, waiting=3) as engine:
        yield engine


@pytest.fixture(scope="module")
def address(engine):
    with running(engine) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=[PHONE, DESKTOP], ids=["phone", "desktop"])
def page(request, browser):
    """A fresh visitor. At the end: nothing was said on the console, nothing asked of another server."""
    context = browser.new_context(viewport=request.param, permissions=["clipboard-read", "clipboard-write"])
    page, said, asked = context.new_page(), [], set()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.add(request.url.split("/")[2] if "://" in request.url else "inside"))
    page.expected = []  # parts of what the console may say
    yield page
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    context.close()
    assert [each for each in said if not any(part in each for part in page.expected)] == []
    assert all(host.startswith(("127.0.0.1", "localhost")) for host in asked - {"inside"}) and wide <= 0


def visit(page, address):
    page.goto(address)
    page.locator("main:not([inert])").wait_for()


def draw(page, address, prompt="a red fox"):
    visit(page, address)
    page.get_by_label("What shall it draw?").fill(prompt)
    page.get_by_label("What shall it draw?").press("Enter")
    expect(page.locator("#draw-status")).to_have_text(re.compile(r"8 ids in"))
    return page.locator("#draw-view img")


def test_a_picture_is_drawn_and_redrawn_from_fewer_ids(page, address, engine):
    visit(page, address)
    expect(page.locator("#about")).to_have_text("tiny: 16 px, 8 ids a picture")
    seen = page.evaluate_handle(
        """() => { const seen = []; const image = document.querySelector("#draw-view img");
        const see = () => seen.at(-1) === image.alt || seen.push(image.alt);
        new MutationObserver(see).observe(image, {attributes: true}); return seen; }"""
    )
    page.get_by_role("button", name="two yellow stars").click()
    image = page.get_by_role("img", name="two yellow stars")
    expect(page.locator("#draw-status")).to_have_text(re.compile(r"8 ids in"))
    prompt = "two yellow stars"
    assert seen.json_value()[-4:] == [*(f"{prompt} ({n} of 8 ids)" for n in (1, 2, 4)), prompt]
    whole = image.get_attribute("src")
    slider = page.locator("#draw-view").get_by_label("Ids kept")
    slider.focus()
    slider.press("Home")
    few = page.get_by_role("img", name="(from 1 of 8 ids)")
    expect(few).to_be_visible()
    assert few.get_attribute("src") != whole and slider.get_attribute("aria-valuetext") == "1 of 8"
    slider.press("End")
    expect(image).to_have_attribute("src", whole)


def test_a_link_draws_the_same_picture(page, address):
    image = draw(page, address)
    page.locator("#draw-view").get_by_label("Ids kept").press("ArrowLeft")
    expect(image).to_have_attribute("alt", "a red fox (from 7 of 8 ids)")
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#draw-status")).to_have_text("Link copied.")
    link, source = page.evaluate("navigator.clipboard.readText()"), image.get_attribute("src")
    assert re.search(r"#prompt=a\+red\+fox&seed=\d+&keep=7$", link) and link == page.url
    page.evaluate("localStorage.clear()")
    page.goto("about:blank")
    visit(page, link)
    expect(page.locator("#draw-view img")).to_have_attribute("src", source)


@desktop_only
def test_settings_reach_the_server_and_what_is_wrong_is_said(page, address):
    page.expected = ["400 (Bad Request)"]
    draw(page, address)
    page.get_by_text("Settings", exact=True).locator("visible=true").click()
    page.locator("#draw-settings").get_by_label("Seed").fill("7")
    page.locator("#draw-settings").get_by_label("Guidance").fill("2.5")
    with page.expect_request("**/v1/images/generations") as asked:
        page.get_by_role("button", name="Draw", exact=True).click()
    body = asked.value.post_data_json
    assert (body["seed"], body["guidance"], body["prompt"]) == (7, 2.5, "a red fox") and "steps" not in body
    expect(page.locator("#draw-view figcaption")).to_contain_text("seed 7")
    page.get_by_label("What shall it draw?").fill("a fox " * 400)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#draw-status.bad")).to_contain_text("prompt")


@desktop_only
def test_esc_stops_and_frees_the_slot(page, address, engine, monkeypatch):
    step = engine.batch.step
    monkeypatch.setattr(engine.batch, "step", lambda: (time.sleep(0.2), step())[1])
    visit(page, address)
    page.get_by_label("What shall it draw?").fill("a red fox")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#draw-status")).to_contain_text("of 8 ids ...")
    assert engine.pending == 1
    page.keyboard.press("Escape")
    expect(page.locator("#draw-status")).to_have_text("Stopped.")
    expect(page.locator("#draw-go")).to_have_text("Draw")
    for _ in range(100):
        page.wait_for_timeout(20)
        if not engine.pending:
            break
    assert engine.pending == 0


@phone_only
def test_a_busy_server_is_asked_again(page, address, engine, monkeypatch):
    page.expected = ["429 (Too Many Requests)"]
    monkeypatch.setattr(engine, "most", 0)
    visit(page, address)
    page.get_by_label("What shall it draw?").press("Enter")
    expect(page.locator("#draw-status")).to_contain_text("busy; trying again in")
    monkeypatch.setattr(engine, "most", 5)
    expect(page.locator("#draw-status")).to_have_text(re.compile(r"8 ids in"))


def png(seed=0):
    """A picture to upload."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def upload(picker, seed=0):
    picker.locator("input[type=file]").set_input_files(
        {"name": "fox.png", "mimeType": "image/png", "buffer": png(seed)}
    )
    expect(picker.locator("img")).to_be_visible()


def test_a_picture_is_edited_and_asked_about(page, address):
    visit(page, address)
    page.get_by_role("tab", name="Edit").click()
    page.get_by_role("button", name="Change it").click()
    expect(page.locator("#edit-status")).to_contain_text("Choose a picture first")
    upload(page.locator("#edit-picture"))
    page.locator("#edit-prompt").fill("make the fox blue")
    page.locator("#edit-prompt").press("Enter")
    expect(page.locator("#edit-view img")).to_have_attribute("alt", "make the fox blue")
    first = page.locator("#edit-view img").get_attribute("src")
    page.get_by_role("button", name="Go on from this picture").click()
    expect(page.locator("#edit-picture img")).to_have_attribute("src", first)
    page.locator("#edit-prompt").fill("what colour is the fox?")
    page.get_by_role("button", name="Ask about it").click()
    expect(page.locator("#edit-answer")).to_have_text(re.compile(r"\S"))


@desktop_only
def test_a_picture_is_pasted(page, address):
    visit(page, address)
    page.get_by_role("tab", name="Edit").click()
    page.evaluate(
        """async (data) => { const file = new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], "pasted.png",
        {type: "image/png"}); const given = new DataTransfer(); given.items.add(file);
        dispatchEvent(new ClipboardEvent("paste", {clipboardData: given, bubbles: true, cancelable: true})); }""",
        base64.b64encode(png()).decode(),
    )
    expect(page.locator("#edit-picture img")).to_have_attribute("alt", "pasted.png")
    page.locator("#edit-picture input[type=file]").set_input_files(
        {"name": "words.png", "mimeType": "image/png", "buffer": b"no picture"}
    )
    expect(page.locator("#edit-picture .status")).to_contain_text("words.png is no picture")


def test_chat_has_pictures_both_ways_and_remembers(page, address):
    visit(page, address)
    page.get_by_role("tab", name="Chat").click()
    field = page.get_by_label("Your message")
    upload(page.locator("#chat-picture"))
    with page.expect_request("**/v1/chat/completions") as asked:
        field.fill("what colour is the fox?")
        field.press("Enter")
    assert [part["type"] for part in asked.value.post_data_json["messages"][0]["content"]] == ["image_url", "text"]
    expect(page.locator("#chat-status")).to_have_text("")
    expect(page.locator("#chat-go")).to_have_text("Send")
    expect(page.locator(".bubble.assistant")).to_have_count(1)
    with page.expect_request("**/v1/chat/completions") as asked:
        field.fill("a red fox")
        field.press("Enter")
    assert [each["role"] for each in asked.value.post_data_json["messages"]] == ["user", "assistant", "user"]
    expect(page.locator("#chat-go")).to_have_text("Send")
    expect(page.locator(".bubble")).to_have_count(4)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".bubble")).to_have_count(0)


def test_ids_are_swapped_between_two_pictures(page, address, engine):
    visit(page, address)
    page.get_by_role("tab", name="Swap ids").click()
    expect(page.locator("#swap-range")).to_have_attribute("disabled", "")
    for side, seed in (("a", 1), ("b", 2)):
        upload(page.locator(f"#swap-{side}"), seed)
    with page.expect_response("**/v1/detokenize"):
        page.get_by_role("button", name="All", exact=True).click()
    expect(page.locator("#swap-first figcaption")).to_have_text("A with ids 1 to 8 of B")
    with page.expect_request("**/v1/detokenize") as asked:
        page.get_by_role("button", name="Coarse half").click()
    a, b = engine.codec.encode([Image.open(io.BytesIO(png(seed))) for seed in (1, 2)]).tolist()
    assert asked.value.post_data_json["ids"] == [a[:4] + b[4:], b[:4] + a[4:]]
    expect(page.locator("#swap-second figcaption")).to_have_text("B with ids 1 to 4 of A")
    expect(page.locator("#swap-second img")).to_be_visible()


def test_two_settings_are_compared_with_one_seed(page, address):
    visit(page, address)
    page.get_by_role("tab", name="Compare").click()
    bodies = []
    page.on("request", lambda request: "generations" in request.url and bodies.append(request.post_data_json))
    page.locator("#compare-prompt").fill("a red fox")
    page.get_by_role("button", name="Draw both").click()
    expect(page.locator("#compare-status")).to_have_text(re.compile(r"\d of 8 ids are the same"))
    assert len(bodies) == 2 and bodies[0]["seed"] == bodies[1]["seed"]
    assert sorted(each.get("guidance", 1.5) for each in bodies) == [1.5, 3]


def test_the_gallery_keeps_ids_and_draws_them_again(page, address):
    image = draw(page, address)
    source = image.get_attribute("src")
    visit(page, page.url)
    page.get_by_role("tab", name="Gallery").click()
    expect(page.locator("#gallery-list img")).to_have_attribute("src", re.compile("^data:"))
    assert len(page.evaluate("localStorage['ddt-gallery']")) < 300
    page.get_by_role("button", name="a red fox", exact=True).click()
    expect(page.locator("#draw-view img")).to_have_attribute("src", source)
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("button", name="Forget: a red fox").click()
    expect(page.locator("#gallery-about")).to_contain_text("Nothing yet")


@desktop_only
def test_tabs_go_by_arrow_keys_and_are_kept_in_the_address(page, address):
    visit(page, address)
    page.get_by_role("tab", name="Draw").focus()
    for name in (*TABS[1:], TABS[0]):
        page.keyboard.press("ArrowRight")
        tab = page.get_by_role("tab", name=name)
        expect(tab).to_be_focused()
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
        assert page.get_by_role("tabpanel").count() == 1
    page.keyboard.press("End")
    assert page.url.endswith("#tab=gallery")
    page.reload()
    expect(page.get_by_role("tab", name="Gallery")).to_have_attribute("aria-selected", "true")


@phone_only
def test_a_key_is_asked_for_and_kept_for_the_tab(page, engine):
    page.expected = ["401 (Unauthorized)"]
    with running(engine, api_key="s3cret") as address:
        page.goto(address)
        page.get_by_label("API key").fill("s3cret")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#about")).to_have_text("tiny: 16 px, 8 ids a picture")
        page.get_by_label("What shall it draw?").press("Enter")
        expect(page.locator("#draw-status")).to_have_text(re.compile(r"8 ids in"))


@phone_only
def test_a_server_that_is_gone_is_told(page, engine):
    page.expected = ["ERR_CONNECTION_REFUSED"]
    with running(engine) as address:
        visit(page, address)
        expect(page.locator("#about")).to_have_text("tiny: 16 px, 8 ids a picture")
    page.get_by_label("What shall it draw?").press("Enter")
    expect(page.locator("#draw-status.bad")).to_have_text("The server cannot be reached. Is it still running?")


@phone_only
def test_a_model_that_only_draws_says_so(page):
    with Engine(*tiny_pair("caption"), slots=2, waiting=3) as engine, running(engine) as address:
        visit(page, address)
        page.get_by_role("tab", name="Edit").click()
        expect(page.get_by_text("This model was not tuned on instructions")).to_be_visible()
        expect(page.get_by_role("button", name="Change it")).to_be_disabled()
        upload(page.locator("#edit-picture"))
        page.get_by_role("button", name="Describe it").click()
        expect(page.locator("#edit-answer")).to_have_text(re.compile(r"\S"))


AXE = os.environ.get("DDT_AXE")  # the file axe.min.js of the npm package axe-core


@pytest.mark.skipif(AXE is None, reason="DDT_AXE names no axe.min.js: npm install axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, address, scheme):
    page.emulate_media(color_scheme=scheme)
    draw(page, address)
    for name in TABS:
        page.get_by_role("tab", name=name).click()
        page.wait_for_load_state("networkidle")
        page.evaluate(Path(AXE).read_text())
        found = page.evaluate(
            "axe.run().then((found) => found.violations.map((each) => [each.id, each.impact, "
            "each.nodes.map((node) => node.html + node.failureSummary).join()]))"
        )
        assert found == [], (name, found)
