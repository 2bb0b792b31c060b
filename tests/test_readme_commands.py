"""Every `ddt ...` line of a document, and every example of the help, is a command with arguments it takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from ddt_apps.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("packages/*/README.md"),
    ROOT / "apps/README.md",
]


def lines():
    for document in DOCUMENTS:
        blocks = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
        for block in (text for language, text in blocks if language in ("", "bash", "sh", "console", "text")):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.removeprefix("$ ").split(" && "):
                    words = re.sub(r".*docs/cluster/\w+\.sh ", "ddt ", part)  # scripts hand their words on to ddt
                    if words.startswith("ddt "):
                        command = shlex.split(words, comments=True)
                        yield pytest.param(command, id=f"{document.relative_to(ROOT)}: {part}")


def examples():
    for group in (app, *(each.typer_instance for each in app.registered_groups)):
        for verb in group.registered_commands:
            for line in re.findall(r"\[bold\](ddt .*?)\[/\]", verb.callback.__doc__):
                yield pytest.param(shlex.split(line), id=line)


@pytest.mark.parametrize("command", [*lines(), *examples()])
def test_the_command_is_understood(command, monkeypatch):
    monkeypatch.setenv("DDT_DEVICE", "auto")  # which `--device` sets, of the process
    node, words = typer.main.get_command(app), command[1:]
    if words == ["--help"] or (len(words) == 1 and words[0] in {each for param in node.params for each in param.opts}):
        return
    while hasattr(node, "commands"):
        assert words and words[0] in node.commands, f"no verb {' '.join(words[:1])!r} in {' '.join(command)!r}"
        node, words = node.commands[words[0]], words[1:]
    node.make_context(command[0], list(words))  # raises a usage error


@pytest.mark.parametrize("document", ["README.md", "docs/results/sceneeval.md"])
def test_python_blocks_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL))
    exec(compile(code, document, "exec"), {})


def test_ci_runs_what_the_readme_says():
    line = re.search(r"^(pip install nox && nox -s test)\b", (ROOT / "README.md").read_text(), re.MULTILINE)[1]
    assert line in (ROOT / ".ci/run").read_text().splitlines()
