"""What worker processes of test_data_building.py are to call: in a module that they can import."""

import os
import time

from ddt_data import Made, write_block


def make(path, texts):
    if "fault" in texts:
        raise ValueError("a fault")
    return Made(write_block(path, [{"key": text, "text": text} for text in texts], None))


def make_and_tell(folder, path, texts):
    (folder / f"{texts[0]}.{os.getpid()}.made").touch()
    return make(path, texts)


def make_slowly(folder, path, texts):
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(60)
