"""The developer's commands; `nox -l` lists them.

Each session needs nothing but nox: it makes its own environment. `-- ARGS` hands arguments on, for example
`nox -s test -- packages/ddt-data -k shards` or `nox -s demo -- name=second`.
"""

import hashlib
import os
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["test"]
nox.options.default_venv_backend = "virtualenv"  # finds the torch build of this machine; `nox -db uv` is quicker
if "PIP_FIND_LINKS" in os.environ:
    os.environ.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])  # uv reads no setting of pip's

PYTHONS = nox.project.python_versions(nox.project.load_toml("apps/pyproject.toml"))  # of its classifiers
PACKAGES = sorted(file.parent.name for file in Path("packages").glob("*/pyproject.toml"))
FOLDERS = [*(f"packages/{name}" for name in PACKAGES), "apps"]
# Nothing is fetched from a hub. Compiling at first import instead of at installation halves the installation, and needs
# that compiled files may be kept.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}


def editable(*extras: str, apps: str = "apps") -> list[str]:
    """All packages and the apps, for one pip call: a sibling on its own cannot be found, or is a stranger's package."""
    suffix = f"[{','.join(extras)}]" if extras else ""
    return [part for name in PACKAGES for part in ("-e", f"packages/{name}{suffix}")] + ["-e", apps]


def test_requirements(*folders: str) -> list[str]:
    """What the tests of projects need, from their dependency groups."""
    groups = (nox.project.load_toml(f"{folder}/pyproject.toml")["dependency-groups"]["test"] for folder in folders)
    return sorted({requirement for group in groups for requirement in group})


def docs_requirements() -> list[str]:
    """What building the site needs."""
    return nox.project.load_toml("apps/pyproject.toml")["dependency-groups"]["docs"]


def install(session: nox.Session, *requirements: str) -> None:
    """Install the tested versions."""
    pip_only = () if session.venv_backend == "uv" else ("--no-compile",)
    session.install(*pip_only, "-c", "constraints.txt", *requirements)


def install_once(session: nox.Session, *requirements: str) -> None:
    """Install into a kept environment, unless it already holds exactly this (our code is editable, so never stale)."""
    files = [Path("constraints.txt"), Path("apps/pyproject.toml"), *sorted(Path("packages").glob("*/pyproject.toml"))]
    wanted = hashlib.sha256("\n".join([*requirements, *(file.read_text() for file in files)]).encode()).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed.sha256"
    if not stamp.exists() or stamp.read_text() != wanted:
        install(session, *requirements)
        stamp.write_text(wanted)


def check_style(session: nox.Session) -> None:
    """Check formatting, then style."""
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session(reuse_venv=True)
def demo(session: nox.Session) -> None:
    """Run the main job on embedded data; ends with runs/demo/report.html. Run again to continue where it stopped."""
    install_once(session, *editable())
    session.run("ddt", "demo", *session.posargs, env=ENVIRONMENT)


def run_tests(session: nox.Session) -> None:
    """Install everything, and run what `-- ARGS` names, or else style and all tests."""
    install_once(
        session, *editable("train", apps="apps[serve]"), *test_requirements(*FOLDERS), *docs_requirements(), "ruff"
    )
    if not session.posargs:
        check_style(session)
    folders = [*(f"packages/{name}/tests" for name in PACKAGES), "apps/tests", "tests"]
    # A process for each core, with one thread: tests are many small things. Files stay whole, as they share what they
    # train. Four processes are enough, and each needs a gigabyte.
    several = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    session.run("pytest", *(session.posargs or [*several, *folders]), env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"})


@nox.session(reuse_venv=True)
def test(session: nox.Session) -> None:
    """Test every package, the apps, the borders between them and the rules of the tree, in one environment."""
    run_tests(session)


@nox.session(python=PYTHONS, reuse_venv=True)
def pythons(session: nox.Session) -> None:
    """Do the same on each Python that the classifiers name; those that are not on this machine are skipped."""
    run_tests(session)


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """Check formatting and style."""
    install_once(session, "ruff")
    check_style(session)


@nox.session(reuse_venv=True)
def layout(session: nox.Session) -> None:
    """Check the rules of the tree (who may import whom, floors, copies, file sizes, versions) in two seconds."""
    install_once(session, "pytest")
    session.run("pytest", "tests/test_layout.py", *session.posargs)


@nox.session(reuse_venv=True)
def docs(session: nox.Session) -> None:
    """Build site/ from the Markdown of the tree and from docstrings, without network; open site/index.html."""
    install_once(session, *docs_requirements())
    session.run("mkdocs", "build", "--strict", *session.posargs, env=ENVIRONMENT | {"NO_MKDOCS_2_WARNING": "1"})


@nox.session(python=False)
def copies(session: nox.Session) -> None:
    """Write every file that begins with `# Copied from PATH` anew from there; a test compares them."""
    for file in sorted(Path("packages").glob("*/src/**/*.py")):
        marker = file.read_text().partition("\n")[0]
        if marker.startswith("# Copied from "):
            file.write_text(f"{marker}\n{Path(marker.removeprefix('# Copied from ')).read_text()}")


@nox.session(reuse_venv=True)
def hashes(session: nox.Session) -> None:
    """Write constraints-hashed.txt: the tested versions and all they need, with the hashes of their files on PyPI."""
    projects = [nox.project.load_toml(f"{folder}/pyproject.toml")["project"] for folder in FOLDERS]
    groups = [group for each in projects for group in each.get("optional-dependencies", {}).values()]
    wanted = {item for group in [*groups, *(each["dependencies"] for each in projects)] for item in group}
    source = Path(session.create_tmp(), "requirements.in")
    source.write_text("\n".join(sorted(item for item in wanted if not item.startswith("ddt-"))))  # siblings have none
    install_once(session, "uv")
    options = ["--universal", "--generate-hashes", "--no-annotate", "--python-version", PYTHONS[0], "-q"]
    options += ["--custom-compile-command", "nox -s hashes", "--default-index", "https://pypi.org/simple"]
    files = ["-c", "constraints.txt", str(source), "-o", "constraints-hashed.txt"]
    session.run("uv", "pip", "compile", *options, *files, env={"UV_FIND_LINKS": None})  # no build of this machine


@nox.session
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def alone(session: nox.Session, package: str) -> None:
    """Install one package with nothing else of this repository, import it, then run its own tests with [train]."""
    module = package.replace("-", "_")
    install(session, f"packages/{package}")
    loaded = f"import sys, {module}; print(*{{'lightning', 'omegaconf', 'diffusers'}} & set(sys.modules))"
    if unwanted := session.run("python", "-c", loaded, silent=True, env=ENVIRONMENT).strip():
        session.error(f"import {module} loads {unwanted}")
    install(session, f"packages/{package}[train]", *test_requirements(f"packages/{package}"))
    session.run("pytest", f"packages/{package}/tests", env=ENVIRONMENT)


@nox.session
@nox.parametrize("package", [*PACKAGES, "apps"], ids=[*PACKAGES, "apps"])
def build(session: nox.Session, package: str) -> None:
    """Build one package's sdist and wheel into dist/, then install the wheel and import it."""
    folder = Path("apps" if package == "apps" else f"packages/{package}")
    project = nox.project.load_toml(folder / "pyproject.toml")["project"]
    module = project["name"].replace("-", "_")
    dist = Path("dist").absolute()
    install(session, "hatchling")
    with session.chdir(folder):
        session.run("hatchling", "build", "-d", str(dist))
    siblings = [f"packages/{name}" for name in PACKAGES] if package == "apps" else []
    install(session, str(dist / f"{module}-{project['version']}-py3-none-any.whl"), *siblings)
    session.run("python", "-c", f"import {module}; print({module}.__file__)")


@nox.session(reuse_venv=True)
def bench(session: nox.Session) -> None:
    """Run one script of benchmarks/, which prints its figures: `-- benchmarks/NAME.py [ARGUMENT ...]`."""
    install_once(session, *editable("train", apps="apps[serve]"), *test_requirements(*FOLDERS))
    session.run("python", *session.posargs, env=ENVIRONMENT)
