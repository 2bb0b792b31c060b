"""ddt rl and ddt adapt: what they ask, reward and leave, and the verbs that use what they made."""

import json
import os
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import ALL, SCHEDULE, make_all, train
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.models import load_pair
from ddt_apps.rewards import SceneReward, ServedReward, WeightedReward, reward_of
from ddt_apps.run.config import load_config
from ddt_apps.train import rl
from ddt_apps.train.rl import Prompts
from ddt_apps.train.settings import Reinforce
from ddt_data import level_config, load_prompts, render, scene_for
from ddt_data.sceneeval.prompts import training_prompts
from ddt_llm import Denoising
from ddt_llm.search import CaptionLikelihood
from ddt_tokenizer.images import to_tensor

ddt = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl")
    before = os.getcwd()
    os.chdir(folder)
    try:
        make_all("tokenizer", "pretrain", "adapt")
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def pictures(prompts, level="tiny"):
    config = level_config(level)
    return to_tensor([render(scene_for(prompt, config, seed), config) for seed, prompt in enumerate(prompts)])


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


# What is asked


def test_each_category_is_asked_as_often_and_nothing_that_is_scored():
    asked = Prompts("tiny")
    order = asked.order(40, 10, 0)
    categories = [asked.prompts[index].category for batch in order for index in batch]
    counts = {category: categories.count(category) for category in set(categories)}
    assert set(counts) == {"two", "position", "attribution"}  # of "tiny", the others are all scored
    assert all(count > 120 for count in counts.values())
    scored = {prompt.text for prompt in load_prompts("tiny")}
    assert not scored & set(asked[i] for i in range(len(asked)))
    with pytest.raises(ValueError, match=r"categories \['single'\] of level tiny are not all there"):
        Prompts("tiny", ["single"])


# What is rewarded


def test_the_judge_rewards_what_was_asked_for_and_parts_of_it():
    prompts = [prompt for prompt in training_prompts("tiny") if prompt.category == "position"][:24]
    partly, strictly = (SceneReward(prompts, "tiny", partial=partial) for partial in (True, False))
    texts, images = [prompt.text for prompt in prompts], pictures(prompts)
    right, some = strictly(images, None, texts), partly(images, None, texts)
    assert right.mean() > 0.9 and (some[right == 1] == 1).all()
    others = [*texts[1:], texts[0]]
    assert strictly(images, None, others).mean() < 0.2 and partly(images, None, others).mean() < 0.2
    elsewhere = [replace(each, relation=OPPOSITE[each.relation]) for each in prompts]
    partly, strictly = (SceneReward(elsewhere, "tiny", partial=partial) for partial in (True, False))
    assert strictly(images, None, texts).max() == 0 and 0.65 < partly(images, None, texts).mean() <= 0.75


def test_a_server_and_functions_are_added_with_weights(tmp_path):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps({"rewards": [len(p) for p in asked[-1]["prompts"]]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    Path("own.py").write_text("def ids(images, ids, prompts):\n    return ids.float().mean(1)\n")
    try:
        reward = reward_of({url: 0.5, "own.py:ids": 2.0}, (), "tiny")
        ids = torch.tensor([[1, 3], [5, 7]])
        assert reward(torch.zeros(2, 3, 8, 8), ids, ["a", "fox"]).tolist() == [0.5 + 4, 1.5 + 12]
        assert asked[0]["ids"] == ids.tolist() and len(asked[0]["images"]) == 2
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ValueError, match="does not answer with rewards"):
        ServedReward(url)(None, ids, ["a", "fox"])
    with pytest.raises(ValueError, match=r"returned \(1,\) for 2 images"):
        WeightedReward([(1.0, lambda *_: torch.zeros(1))])(None, ids, ["a", "fox"])


# What comes of it


def test_a_run_leaves_a_model_that_draws_and_pictures_over_time():
    train("rl", "rl", "level=tiny")
    assert len(list(Path("runs/rl/samples").glob("step-*.png"))) == 3
    with Image.open("runs/rl/samples/step-000006.png") as sheet:
        assert sheet.size[0] > 4 * 256
    rows = Path("runs/rl/metrics.csv").read_text().splitlines()
    assert {"reward", "referee", "kl", "entropy", "flat_groups"} <= set(rows[0].split(","))
    found = ddt.invoke(app, ["generate", "a fox", "--model", "runs/rl", "--out", "fox.png"])
    assert found.exit_code == 0 and Path("fox.png").is_file()


def test_a_judge_that_sees_nothing_stops_the_run():
    strict = ["model=runs/pretrain", "name=blind", "rewards={scenes-strict: 1.0}", "referee=null", *ALL, *SCHEDULE]
    with pytest.raises(ValueError, match="all rewards of the first 5 steps are 0: nothing can be learned"):
        rl.train(load_config(Reinforce, "tiny/rl", strict))


def test_an_adapted_run_draws_in_a_few_passes_and_in_order():
    lm, codec = load_pair(Path("runs/adapt"), None)
    assert lm.generate("a fox", codec, denoising=Denoising(steps=3)).passes == 3
    assert lm.generate("a fox", codec).passes == 3  # the first of four ids comes with the prompt
    words = ["generate", "a fox", "--model", "runs/adapt", "--out", "fox.png", "--json"]
    drawn = [ddt.invoke(app, [*words, *more]) for more in ([], ["--denoise", "3"], ["--denoise", "4", "--sure", "0.1"])]
    assert [each.exit_code for each in drawn] == [0, 0, 0], [each.output for each in drawn]
    assert all(len(json.loads(each.stdout)["ids"]) == 4 for each in drawn)
    for model, more, said in (
        ("runs/adapt", ["--denoise", "2"], "steps (2) must be at least the number of blocks, 3"),
        ("runs/adapt", ["--sure", "0.5"], "--sure 0.5 is of denoising"),
        ("runs/pretrain", ["--denoise", "4"], "adapt it with ddt adapt"),
    ):
        refused = ddt.invoke(app, ["generate", "a fox", "--model", model, "--out", "fox.png", *more])
        assert refused.exit_code == 2 and said in refused.stderr and refused.stderr.count("\n") == 1


def test_scores_tell_how_a_picture_was_drawn_and_in_how_many_passes():
    found = {}
    for name, words in {"order": [], "blocks": ["denoising.steps=3"]}.items():
        words = ["evaluate", "scenes", "runs/adapt", "level=tiny", "pictures=1", *words, "--out", name]
        result = ddt.invoke(app, words)
        assert result.exit_code == 0, result.output
        found[name] = json.loads(Path(name, "scores.json").read_text())
    assert [each["scores"]["passes"] for each in found.values()] == [3, 3]
    assert found["blocks"]["model"]["denoising"]["steps"] == 3 and "denoising" not in found["order"]["model"]
    assert found["order"]["protocol_id"] == found["blocks"]["protocol_id"]  # one table


def test_the_best_of_several_is_drawn_and_its_search_is_told():
    words = ["generate", "a fox", "--model", "runs/pretrain", "--out", "fox.png", "--json"]
    one, best = (json.loads(ddt.invoke(app, [*words, *more]).stdout) for more in ([], ["--best-of", "6"]))
    lm, _ = load_pair(Path("runs/pretrain"), None)
    ids = torch.tensor([one["ids"], best["ids"]])
    likelihood = CaptionLikelihood(lm)(None, ids, ["a fox", "a fox"])
    assert likelihood[1] >= likelihood[0]  # the first of the six is the one
    refused = ddt.invoke(app, [*words, "--best-of", "6", "--sketch", "fox.png"])
    assert refused.exit_code == 2 and "leave out --sketch" in refused.stderr
    for verifier in ("likelihood", "judge"):
        how = ["search.branch=2", "search.prefixes=[1]", f"search.verifier={verifier}", "--out", verifier]
        result = ddt.invoke(app, ["evaluate", "scenes", "runs/pretrain", "level=tiny", "pictures=1", *how])
        assert result.exit_code == 0, result.output
        found = json.loads(Path(verifier, "scores.json").read_text())
        assert found["scores"]["verifier_calls"] == 4 and found["model"]["search"]["prefixes"] == [1]
