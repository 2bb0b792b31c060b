"""The `ddt` command."""

from ddt_apps.cli.main import app

__all__ = ["app"]
