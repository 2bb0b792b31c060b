"""`python -m ddt_apps` is `ddt`."""

from ddt_apps.run.signals import handled, leave

with handled(leave):  # also while the command is still being loaded
    from ddt_apps.cli.main import app

    app(prog_name="ddt")
