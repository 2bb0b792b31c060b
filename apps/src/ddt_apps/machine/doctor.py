"""ddt doctor: what this machine has for `ddt`, and the known traps that it has set."""

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

GB = 1e9
LEAST_FREE = 5.0  # GB of a disk, below which a run may not save
PACKAGES = ("ddt-apps", "ddt-data", "ddt-tokenizer", "ddt-decoder", "ddt-llm")
LIBRARIES = ("torch", "lightning", "transformers", "diffusers", "torch-npu", "torchvision", "triton")
HUB = ("huggingface.co", 443)
STOLEN = ("2.6.2", "2.6.3")  # of lightning: they steal passwords (GHSA-w37p-236h-pfx3)


@dataclass(frozen=True)
class Finding:
    """A line of the report."""

    what: str
    found: str
    trap: str = ""  # what is wrong with it, and the remedy


def examine(folder: Path) -> list[Finding]:
    """Look at everything.

    Args:
        folder: Where runs and data go.

    Example:
        >>> [finding.what for finding in examine(Path("."))][:3]
        ['python', 'ddt', 'libraries']
    """
    return [*software(), *devices(), *surroundings(folder)]


def versions() -> dict[str, str]:
    """Return the versions of what is installed of our packages, and of the libraries that decide what they do."""
    return {name: found for name in (*PACKAGES, *LIBRARIES) if (found := _version(name))}


def software() -> Iterator[Finding]:
    """Find versions, and packages that break others."""
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    found = versions()
    trap = ""
    if found.get("ddt-llm", "").startswith("0."):
        trap = "ddt-llm below 1.0 is a stranger's package of that name; install all five from this repository"
    yield Finding("ddt", ", ".join(f"{name} {found.get(name, 'missing')}" for name in PACKAGES), trap)
    trap = ""
    if found.get("lightning") in STOLEN:
        trap = f"lightning {found['lightning']} steals credentials; change your passwords and install another version"
    there = [f"{name} {found[name]}" for name in LIBRARIES if name in found]
    yield Finding("libraries", ", ".join(there), trap)
    if "torchvision" in found:
        trap = _fails("torchvision", "torch")
        remedy = "it is of another torch; remove it (ddt needs none) or install that of this torch"
        yield Finding("torchvision", "works" if not trap else "does not load", f"{trap}: {remedy}" if trap else "")


def devices() -> Iterator[Finding]:
    """Find processors, and how a run would use them."""
    import torch

    from ddt_apps.run.devices import backends, pick_compile, pick_device, pick_precision
    from ddt_tokenizer.attend import better_written_out
    from ddt_tokenizer.precision import multiplies_bf16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    size = memory()
    instructions = "with" if multiplies_bf16(torch.device("cpu")) else "without"
    told = f"{cores} cores, {size / GB:.0f} GB" if size else f"{cores} cores"
    threads = torch.get_num_threads()
    trap = f"torch uses {threads} threads on them; set OMP_NUM_THREADS={cores}" if cores and threads > cores else ""
    yield Finding("cpu", f"{told}, {torch.backends.cpu.get_cpu_capability()}, {instructions} bf16 instructions", trap)

    failed = [f"{name}: {why}" for name, why in backends().items() if why]
    refused = ""
    try:
        device = pick_device()
    except ValueError as error:
        device, refused = torch.device("cpu"), str(error)
    trap = f"{'; '.join(failed)}; its driver is not here: `import torch` itself fails without ddt" if failed else ""
    if device.type == "cpu" and shutil.which("nvidia-smi") and torch.version.cuda is None:
        trap = f"there is an NVIDIA GPU, and torch {torch.__version__} has no CUDA; install torch from PyTorch's index"
    if device.type == "cpu":
        found = "none"
    else:
        module = torch.get_device_module(device)
        name_of = getattr(module, "get_device_name", lambda index: device.type)
        names = [name_of(index) for index in range(torch.accelerator.device_count())]
        found = f"{len(names)} x {device.type}: {', '.join(dict.fromkeys(names))}"
    yield Finding("accelerator", found, refused or trap)

    precision, compiles = pick_precision("auto", device), pick_compile("auto", device)
    half = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16, device=device)
    attention = "written out up to 1,024 tokens in bf16" if better_written_out(half, half) else "fused"
    compiler = "runs of ten minutes or more" if compiles == "auto" else "nothing: no compiler here"
    yield Finding("a run", f"device={device}, precision={precision}; compiles {compiler}; attention {attention}")


def surroundings(folder: Path) -> Iterator[Finding]:
    """Find disk, shared memory, files, ports and the network."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free / GB
    trap = f"less than {LEAST_FREE:.0f} GB are free; a run may not be able to save" if free < LEAST_FREE else ""
    writable = os.access(place, os.W_OK)
    yield Finding("disk", f"{free:.0f} GB free at {place}", trap if writable else f"{place} cannot be written to")
    if (shared := Path("/dev/shm")).exists():
        room = shutil.disk_usage(shared).total / GB
        trap = "processes that read data (workers=) need 1 GB of it; start a container with --shm-size=8g"
        yield Finding("shared memory", f"{room:.1f} GB", trap if room < 1 else "")
    if find_spec("resource"):
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield Finding("open files", f"{files}", "raise it: ulimit -n 4096" if files < 1024 else "")
    try:
        with socket.create_server(("localhost", 0)):
            yield Finding("ports", "several processes can meet on this machine")
    except OSError as error:
        yield Finding("ports", "none", f"devices=2 needs a port of localhost: {error}")
    if os.environ.get("HF_HUB_OFFLINE"):
        yield Finding("network", "not asked: HF_HUB_OFFLINE is set")
        return
    try:
        with socket.create_connection(HUB, timeout=3):
            yield Finding("network", f"{HUB[0]} answers")
    except OSError:
        yield Finding("network", f"{HUB[0]} does not answer; Hub ids need it, all else of ddt does not")


def report(findings: list[Finding]) -> str:
    """Lay findings out as lines; what is a trap has its own.

    Example:
        >>> print(report([Finding("cpu", "2 cores"), Finding("disk", "1 GB", "too little")]))
        cpu   2 cores
        disk  1 GB
            ! too little
    """
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.what:<{width}}  {finding.found}")
        if finding.trap:
            lines.append(f"    ! {finding.trap}")
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def memory() -> int:
    """Return the bytes of memory, those of the container if it has fewer; 0 where it cannot be known."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return min(pages, int(allowed)) if allowed.isdigit() else pages


def _fails(package: str, before: str) -> str:
    """Import a package in a process of its own, after another one; return how it fails."""
    tried = subprocess.run(
        [sys.executable, "-c", f"import {before}, {package}"],
        capture_output=True,
        text=True,
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    )
    said = tried.stderr.strip().splitlines() or [f"ends with {tried.returncode}"]
    return "" if tried.returncode == 0 else said[-1]
