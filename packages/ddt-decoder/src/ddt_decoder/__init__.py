"""Rectified-flow MMDiT decoder of discrete diffusion timestep tokens: ids -> images."""

from importlib.metadata import version

from ddt_decoder.config import DecoderConfig
from ddt_decoder.decoder import DDTDecoder
from ddt_decoder.flow import FlowConfig
from ddt_decoder.latents import LatentConfig
from ddt_decoder.mmdit import MMDiT, MMDiTConfig
from ddt_decoder.renderer import DDTRenderer
from ddt_decoder.schedule import LogitNormalSchedule, TokenSchedule

__version__ = version("ddt-decoder")

__all__ = [
    "DDTDecoder",
    "DDTRenderer",
    "DecoderConfig",
    "FlowConfig",
    "LatentConfig",
    "LogitNormalSchedule",
    "MMDiT",
    "MMDiTConfig",
    "TokenSchedule",
]
