"""The applications: the four ddt packages composed into the `ddt` command."""

from importlib.metadata import version

__version__ = version("ddt-apps")
