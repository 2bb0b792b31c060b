"""CPU seconds and memory of opening a million small samples: with the index of their folder, and without one.

python benchmarks/shard_opening.py
python benchmarks/shard_opening.py 100000

Each time is that of a process of its own: opening, the first sample, and pickling as for a worker. Without an index
once by our own walk over the headers, once by that of tarfile, which was the only one before there were indexes.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

from ddt_data.shards.index import INDEX, write_index
from ddt_data.shards.manifest import Manifest, Shard, checksum

PER_SHARD = 1000
OPEN = """
import pickle, resource, sys, time
import ddt_data, ddt_data.shards.tar_shard as tar_shard
if sys.argv[2] == "tarfile":
    tar_shard.find_places = lambda path: None
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
memory, times = peak(), [time.process_time()]
dataset = ddt_data.ShardDataset(sys.argv[1])
times.append(time.process_time())
more = peak() - memory
dataset[len(dataset) // 2]
times.append(time.process_time())
sent = len(pickle.dumps(dataset)) / 1e6
opened, first = times[1] - times[0], times[2] - times[1]
print(f"open {opened:.2f} s and {more:.0f} MB, first sample {1000 * first:.0f} ms, {sent:.1f} MB for a worker")
"""


def write_samples(folder: Path, count: int) -> None:
    """Write samples with a picture of one pixel and a caption; by tarfile, as writing is not what is measured."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    shards = []
    for first in range(0, count, PER_SHARD):
        path = folder / f"{first // PER_SHARD:06d}.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(first, first + PER_SHARD):
                for extension, data in (("png", buffer.getvalue()), ("txt", b"a dot")):
                    info = tarfile.TarInfo(f"{number:08d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        shards.append(Shard(path.name, PER_SHARD, checksum(path)))
    manifest = Manifest(count, tuple(shards), image_size=1)
    write_index(folder, manifest)
    manifest.write(folder)


def main() -> None:
    """Print a line for each way of opening."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_samples(folder, count)
        for way in ("index", "no index", "tarfile"):
            if way != "index":
                (folder / INDEX).unlink(missing_ok=True)
            found = subprocess.run(
                [sys.executable, "-c", OPEN, folder, way], capture_output=True, text=True, check=True
            )
            print(f"{count:,} samples, {way}: {found.stdout}", end="", flush=True)


if __name__ == "__main__":
    main()
