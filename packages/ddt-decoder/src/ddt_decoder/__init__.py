"""Rectified-flow MMDiT decoder of discrete diffusion timestep tokens: ids -> images."""

from ddt_decoder.decoder import DDTDecoder, DecoderConfig
from ddt_decoder.flow import FlowConfig
from ddt_decoder.mmdit import MMDiT, MMDiTConfig
from ddt_decoder.schedule import TokenSchedule

__all__ = ["DDTDecoder", "DecoderConfig", "FlowConfig", "MMDiT", "MMDiTConfig", "TokenSchedule"]
