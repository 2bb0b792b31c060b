"""The command `ddt`, also as `python -m ddt_apps`."""

import os
import signal
import sys

from ddt_apps.run.ranks import adopt_slurm, one_voice, started, tell_fault
from ddt_apps.run.signals import SIGNALS, leave
from ddt_apps.run.starting import end_with_parent


def main() -> None:
    """Run the command; signals end it also while it is being loaded."""
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # see `ddt_apps.run.devices.backends`
    for number in SIGNALS:
        signal.signal(number, leave)
    end_with_parent()
    from ddt_apps.cli.main import app

    sys.excepthook = tell_fault
    try:
        adopt_slurm()
        with one_voice():
            app(prog_name="ddt")
    except SystemExit as end:
        if started():  # threads of gloo or NCCL may be alive, over which Python's own end aborts now and then
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(end.code or 0))
        raise
    finally:
        for number in SIGNALS:  # the work is over, and so is its exit code decided
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
