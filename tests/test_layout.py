"""Rules of the tree: who may import whom, what may stand where. Reads source text only; needs nothing but pytest."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(file.parent for file in ROOT.glob("packages/*/pyproject.toml"))
PROJECTS = [*PACKAGES, ROOT / "apps"]
LISTED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
FILES = [ROOT / name for name in LISTED if name and (ROOT / name).is_file()]
PYTHON = [file for file in FILES if file.suffix == ".py"]
SOURCES = [file for file in PYTHON if "src" in file.parts]
HASHED = (ROOT / "constraints-hashed.txt").read_text()


def name_of(path):
    return str(path.relative_to(ROOT))


def imports(file, module_level=False):
    """Top-level package names that a file imports; with `module_level`, only those that `import file` loads."""
    tree = ast.parse(file.read_text())
    nodes = tree.body if module_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def of_projects(projects):
    return pytest.mark.parametrize("project", projects, ids=[project.name for project in projects])


class House:
    """The files of one import package, as rooms: its wings (folders), and the modules beside them."""

    def __init__(self, root):
        self.root, self.files = root, [file for file in SOURCES if root in file.parents]

    def file(self, dotted):
        path = self.root.parent.joinpath(*dotted.split("."))
        return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)

    def arrows(self, file, module_level=True):
        """Files of the same package that a file imports."""
        tree = ast.parse(file.read_text())
        for node in tree.body if module_level else ast.walk(tree):
            for dotted in [alias.name for alias in node.names] if isinstance(node, ast.Import) else []:
                yield from filter(None, [self.file(dotted)] if dotted.startswith(f"{self.root.name}.") else [])
            if isinstance(node, ast.ImportFrom):
                folders = file.relative_to(self.root.parent).parts[: -node.level]  # none at level 0
                module = ".".join(filter(None, [*folders, node.module]))
                if module.split(".")[0] == self.root.name:
                    for alias in node.names:
                        yield self.file(f"{module}.{alias.name}") or self.file(module)

    def room(self, file):
        """The wing that a file stands in, or the module itself."""
        return file.relative_to(self.root).parts[0].removesuffix(".py")

    def floors(self):
        """How many rooms stand above one another: the longest chain of imports."""
        below = {self.room(file): set() for file in self.files}
        for file in self.files:
            below[self.room(file)] |= {self.room(each) for each in self.arrows(file, module_level=False)}
        height = {}

        def climb(room, path=()):
            assert room not in path, f"{self.root.name}: a circle, {' > '.join([*path, room])}"
            if room not in height:
                height[room] = 1 + max((climb(each, (*path, room)) for each in below[room] - {room}), default=0)
            return height[room]

        return max(climb(room) for room in below), below


MODULES = {root.name: House(root) for project in PROJECTS for root in (project / "src").iterdir() if root.is_dir()}


def test_the_house_has_few_floors_and_no_circles():
    most = {"ddt_data": 5, "ddt_apps": 8, "ddt_llm": 8, "ddt_decoder": 8, "ddt_tokenizer": 8}
    for name, house in MODULES.items():
        floors, below = house.floors()
        print(f"{name}: {len(below)} rooms, {floors} floors, {sum(len(b - {r}) for r, b in below.items())} arrows")
        assert floors <= most[name], f"{name} has {floors} floors"
        for file in house.files:  # no circle between the files of a wing either, not even by type
            seen, queue = set(), list(house.arrows(file, module_level=False))
            while queue:
                each = queue.pop()
                if each not in seen:
                    seen.add(each)
                    queue += house.arrows(each, module_level=False)
            assert file not in seen or file.name == "__init__.py", f"{name_of(file)} imports itself in a circle"


def test_copies_are_what_their_homes_are():
    marker, copies = "# Copied from ", 0
    for file in SOURCES:
        first, _, rest = file.read_text().partition("\n")
        if first.startswith(marker):
            home = (ROOT / first.removeprefix(marker)).read_text()
            assert not home.startswith(marker), f"{name_of(file)}: name the first home"
            assert rest == home, f"{name_of(file)} is not its home any more; change the home, then run: nox -s copies"
            copies += 1
    assert copies


def test_use_evaluation_and_serve_never_train():
    house = MODULES["ddt_apps"]
    for wing in ("use", "evaluation", "serve"):
        seen, queue = set(), [file for file in house.files if house.room(file) == wing]
        while queue:
            file = queue.pop()
            assert house.room(file) != "train", f"{wing} reaches {name_of(file)}"
            if file not in seen:
                seen.add(file)
                queue += house.arrows(file, module_level=False)


@of_projects(PACKAGES)
def test_packages_never_import_one_another(project):
    others = {package.name.replace("-", "_") for package in PROJECTS if package != project} | {"ddt_apps"}
    for file in [file for file in PYTHON if project in file.parents]:
        found = others & set(imports(file))
        if file.name == "codec.py" and project.name == "ddt-tokenizer":  # the pair, extra [decode]
            found -= {"ddt_decoder"} if "ddt_decoder" not in imports(file, module_level=True) else set()
        assert not found, f"{name_of(file)} imports a sibling"


@of_projects(PROJECTS)
def test_every_project_has_what_a_stranger_expects(project):
    module = project / "src" / ("ddt_apps" if project.name == "apps" else project.name.replace("-", "_"))
    for needed in (project / "README.md", project / "CHANGELOG.md", module / "py.typed", module / "__init__.py"):
        assert needed.is_file(), f"{name_of(needed)} is missing"
    assert list((project / "tests").glob("test_*.py")), f"{project.name} has no tests"


@of_projects(PROJECTS)
def test_version_equals_the_newest_changelog_heading(project):
    settings = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    headings = re.findall(r"^## \[?(\d[^\]\s]*)\]?", (project / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:1] == [settings["version"]]
    assert settings["license"] == "Apache-2.0"
    assert settings["requires-python"] == ">=3.11"


@of_projects(PROJECTS)
def test_a_wheel_says_what_the_index_shows(project):
    settings = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert "LICENSE" in settings["license-files"] and settings["urls"] and settings["authors"] and settings["keywords"]
    assert (project / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes(), f"copy LICENSE into {project.name}"
    named = {each.rpartition(" ")[2] for each in settings["classifiers"] if "Python :: 3." in each}
    assert named == {"3.11", "3.12", "3.13"} and f">={min(named)}" == settings["requires-python"]
    words = (project / settings["readme"]).read_text()
    for link in re.findall(r"\]\(([^)\s]+)", words) + re.findall(r"""(?:href|src)=["']([^"']+)""", words):
        assert re.match("https://|#", link), f"{project.name}/README.md: the index does not know where {link} is"


def test_versions_with_hashes_are_those_that_are_tested():
    tested = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    hashed = re.findall(
        r"^([\w-]+)==(\S+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", HASHED, re.MULTILINE
    )
    assert len(hashed) == len(re.findall(r"^[\w-]+==", HASHED, re.MULTILINE))
    for name, version, _ in hashed:
        assert tested.get(name.replace("-", "_"), tested.get(name, version)) == version, f"{name}: run nox -s hashes"
    named = {name.replace("-", "_") for name, *_ in hashed}
    for project in PROJECTS:
        settings = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        extras = settings.get("optional-dependencies", {}).values()
        for item in [*settings["dependencies"], *(item for extra in extras for item in extra)]:
            wanted = re.split(r"[^\w-]", item)[0].replace("-", "_")
            assert wanted in named or wanted.startswith("ddt_"), f"{wanted} has no hash: run nox -s hashes"


def test_packages_require_no_sibling():
    names = {package.name for package in PROJECTS}
    for package in PACKAGES:
        settings = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        extras = settings.get("optional-dependencies", {})
        if package.name == "ddt-tokenizer":  # the one edge: Codec, which encodes and draws
            assert extras.pop("decode") == ["ddt-decoder>=0.1"]
        wanted = [*settings.get("dependencies", []), *(item for extra in extras.values() for item in extra)]
        assert not names & {re.split(r"[^\w-]", item)[0] for item in wanted}, f"{package.name} requires a sibling"


def test_nothing_loads_torch_npu_or_torchvision():
    for file in PYTHON:
        assert not {"torchvision", "torch_npu"} & set(imports(file)), (
            f"{name_of(file)} imports torchvision or torch_npu"
        )


def loaded_by(package):
    """The files of a package that `import` of it loads."""
    house = MODULES[package.name.replace("-", "_")]
    reached, queue = set(), [house.root / "__init__.py"]
    while queue:
        file = queue.pop()
        reached.add(file)
        queue += [each for each in house.arrows(file) if each not in reached]
    return reached


def test_importing_a_package_loads_neither_lightning_nor_omegaconf():
    for package in PACKAGES:
        for file in loaded_by(package):
            assert not {"lightning", "omegaconf", "diffusers"} & set(imports(file, module_level=True)), name_of(file)


@of_projects(PROJECTS)
def test_what_an_import_needs_is_declared(project):
    """Extras and hints are for what is imported inside functions, and for modules that `import` of a package leaves.

    A wing of apps may have an extra of its own, of its name.
    """
    settings = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    declared = named(settings["dependencies"])
    known = declared | {"PIL"} if "pillow" in declared else declared
    for file in loaded_by(project) if project in PACKAGES else [file for file in SOURCES if project in file.parents]:
        own = named(settings.get("optional-dependencies", {}).get(file.parent.name, []))
        for name in set(imports(file, module_level=True)) - sys.stdlib_module_names - set(MODULES):
            assert name in known | own, f"{name_of(file)} imports {name}; declare it in {project.name}/pyproject.toml"


def named(requirements):
    return {re.split(r"[^\w-]", item)[0].replace("-", "_") for item in requirements}


def test_only_apps_name_devices():
    named = re.compile(r"""["'](cuda|npu|mps)(:\d+)?["']|\.cuda\(|torch\.cuda\b|torch\.mps\b""")
    for file in SOURCES:
        if file.name != "devices.py" or "apps" not in file.parts:
            assert not named.search(file.read_text()), f"{name_of(file)} names a device"


def test_pickles_are_never_loaded():
    for file in PYTHON:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = {word.arg: ast.unparse(word.value) for word in node.keywords}.get("weights_only")
                assert safe == "True", f"{name_of(file)}:{node.lineno} torch.load without weights_only=True"
    for file in SOURCES:
        assert not {"pickle", "joblib", "dill"} & set(imports(file)), f"{name_of(file)} imports a pickle library"


def test_files_are_short():
    for file in PYTHON:
        lines = len(file.read_text().splitlines())
        assert lines <= 400, f"{name_of(file)} has {lines} lines; one concept a file, at most 400"


def test_functions_are_short():
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                said = (ast.get_docstring(node, clean=False) or "").count("\n") + 1
                lines = node.end_lineno - node.lineno + 1 - said
                assert lines <= 70, f"{name_of(file)}: {node.name} has {lines} lines beside its docstring, at most 70"


def test_modules_are_named_after_a_concept():
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "base", "manager", "core"}
    for file in SOURCES:
        assert file.stem not in vague, f"{name_of(file)}: name the concept"


def test_nothing_is_left_for_later():
    for file in SOURCES:
        found = re.search(
            r"\bTODO\b|\bFIXME\b|NotImplementedError|except\s*:|except (Base)?Exception\b", file.read_text()
        )
        assert not found, f"{name_of(file)}: {found.group()}"


def test_docstrings_have_one_form():
    """Examples under `Example:`, what is raised as `Kind: If ...`; ruff's pydocstyle rules hold the rest."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                where = f"{name_of(file)}, {getattr(node, 'name', 'module')}"
                assert ">>> " not in text or re.search(r"^Example:$", text, re.MULTILINE), f"{where}: a bare example"
                raises = re.search(r"^Raises:\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
                for line in re.findall(r"^    \w[\w, ]*: (.*)", raises[1] if raises else "", re.MULTILINE):
                    assert re.match(r"If |As |See |\(", line), f"{where}: Raises '{line}' says no condition"
                assert not re.match(r"(Say|Tell|Give)s?\b", text), f"{where}: '{text[:30]}...'; Return, Compute, Read"


def test_test_file_names_are_unique():
    names = [file.name for file in PYTHON if file.name.startswith("test_")]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


def test_no_file_names_a_path_of_one_machine():
    machine = re.compile(r"(?<![\w.])/(?:work|tmp|root|home|opt)/")
    for file in FILES:
        if file.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".cfg"} and file != Path(__file__).resolve():
            found = machine.search(file.read_text())
            assert not found, f"{name_of(file)} names the machine path {found.group()}"
