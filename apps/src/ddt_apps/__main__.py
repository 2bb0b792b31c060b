"""`python -m ddt_apps` is `ddt`."""

from ddt_apps.cli.main import app

app(prog_name="ddt")
