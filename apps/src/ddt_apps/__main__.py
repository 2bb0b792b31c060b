"""`python -m ddt_apps` is `ddt`."""

from ddt_apps.cli import app

app(prog_name="ddt")
