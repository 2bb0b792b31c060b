"""Devices that Lightning does not know, such as an NPU: by what torch itself says of any accelerator.

Lightning trains on the CPU, without a word, where it is given the name of an accelerator that it does not know.
"""

from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch.nn.parallel import DistributedDataParallel

from ddt_apps.run.devices import KNOWN
from ddt_apps.run.ranks import num_ranks, rank_here, ranks_here, started


class TorchAccelerator(Accelerator):
    """The accelerator that torch has here, such as an NPU; its module, `torch.npu`, does the work."""

    def setup_device(self, device: torch.device) -> None:
        torch.accelerator.set_device_index(device.index)

    def teardown(self) -> None:
        """Leave the memory to the end of the process."""

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        return torch.get_device_module(torch.device(device)).memory_stats(device)

    @staticmethod
    def parse_devices(devices: int | str | list[int]) -> list[int]:
        return devices if isinstance(devices, list) else list(range(int(devices)))

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        return [torch.device(torch.accelerator.current_accelerator().type, index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        return torch.accelerator.device_count()

    @staticmethod
    def is_available() -> bool:
        return torch.accelerator.is_available()

    @staticmethod
    def name() -> str:
        return torch.accelerator.current_accelerator().type


class _DDP(DDPStrategy):
    """Lightning's own, but that it takes a stream of CUDA for any accelerator."""

    def _setup_model(self, model: torch.nn.Module) -> DistributedDataParallel:
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)


def placement(device: torch.device, precision: str, strategy: str, find_unused: bool) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that say where it computes: in all processes, if there are several.

    Args:
        device: Of which kind the devices are.
        precision: By Lightning's name.
        strategy: See `RunSettings.strategy`.
        find_unused: Whether a step may leave weights out.
    """
    known = device.type in KNOWN
    arguments: dict[str, Any] = {
        "accelerator": device.type if known else TorchAccelerator(),
        "devices": ranks_here(),
        "num_nodes": num_ranks() // ranks_here(),
        "precision": precision,
        "plugins": [],
    }
    if started():
        arguments["plugins"] += [TorchElasticEnvironment()]
        backend = torch.distributed.get_default_backend_for_device(device.type)
    if strategy == "fsdp2":
        arguments["strategy"] = ModelParallelStrategy(num_ranks(), 1, process_group_backend=backend)
    elif num_ranks() > 1:
        arguments["strategy"] = (DDPStrategy if known else _DDP)(
            process_group_backend=backend,
            find_unused_parameters=find_unused,
            # What is no weight, such as a codebook, is kept equal by those that change it.
            broadcast_buffers=False,
        )
    elif not known:
        arguments["strategy"] = SingleDeviceStrategy(torch.device(device.type, rank_here()))
    if not known and precision in ("bf16-mixed", "16-mixed"):  # Lightning's own choice would autocast for CUDA
        arguments["precision"] = None
        arguments["plugins"] += [MixedPrecision(precision, device.type)]
    return arguments
