"""A stand-in for an NPU, from its import on: tensors say that they are on "npu", and all work is done on the CPU.

For a process of its own, as a device of torch stays for good. What a real one has besides, its kernels, its memory and
hccl, is not tried by this.
"""

from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_map


class Module(backend_registration._DummyBackendModule):
    """What torch asks `torch.npu`."""

    def device_count(self) -> int:
        return 2

    def is_bf16_supported(self) -> bool:
        return True

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class OnNPU(torch.Tensor):
    """A tensor that is elsewhere: on the CPU, in `inner`."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnNPU":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=torch.device("npu", 0), **layout)

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        out = op(*tree_map(inside, args), **tree_map(inside, kwargs))
        if op._schema.name.endswith("_") and isinstance(args[0], torch.Tensor):  # in place
            return args[0]
        return out if leaves else tree_map(lambda each: cls(each) if isinstance(each, torch.Tensor) else each, out)


def inside(value: Any) -> Any:
    """Return what an operator on the CPU gets in the place of a value."""
    return value.inner if isinstance(value, OnNPU) else value


def made_on_cpu(op: Any) -> Any:
    """Return an operator that makes tensors, on the CPU in place of an NPU."""

    def make(*args: Any, device: Any = None, **kwargs: Any) -> OnNPU:
        return OnNPU(op(*args, **{name: value for name, value in kwargs.items() if value is not None}))

    return make


def copied(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    inside(target).copy_(inside(source))
    return target


backend_registration._setup_privateuseone_for_python_backend("npu", Module())
aten = torch.library.Library("aten", "IMPL")
aten.impl("empty.memory_format", made_on_cpu(torch.ops.aten.empty.memory_format), "PrivateUse1")
aten.impl("empty_strided", made_on_cpu(torch.ops.aten.empty_strided.default), "PrivateUse1")
aten.impl("_copy_from", copied, "PrivateUse1")
