"""The command `ddt`, also as `python -m ddt_apps`."""

import signal

from ddt_apps.run.signals import SIGNALS, leave


def main() -> None:
    """Run the command; signals end it also while it is being loaded."""
    for number in SIGNALS:
        signal.signal(number, leave)
    from ddt_apps.cli.main import app

    try:
        app(prog_name="ddt")
    finally:
        for number in SIGNALS:  # the work is over, and so is its exit code decided
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
