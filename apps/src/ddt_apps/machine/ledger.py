"""What a step of training takes, kept account of while it runs on the meta device, where nothing is computed."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental import _config as shapes
from torch.optim import adam
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

import ddt_decoder.attend
import ddt_llm.attend
import ddt_tokenizer.attend

aten = torch.ops.aten
FUSED = aten._scaled_dot_product_flash_attention_for_cpu
# Counted as the fused attentions that torch has formulas for.
FLOPS = flop_registry | {
    FUSED: lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda out, q, k, v, *_, **__: sdpa_backward_flop_count(
        out.shape, q.shape, k.shape, v.shape
    ),
}
PRODUCTS = ((F, "linear"), (F, "conv2d"), (F, "conv_transpose2d"), (torch, "matmul"), (torch, "bmm"))
PRODUCTS += ((torch, "baddbmm"), (Tensor, "matmul"), (Tensor, "__matmul__"))


class Ledger(TorchDispatchMode):
    """Counts the memory that tensors on the meta device would have, and the operations of products.

    Attributes:
        bytes: Of what is alive now.
        peak: Most bytes that were alive at once since it was last set.
        flops: Floating-point operations of products. (Torch's own counter keeps what checkpointing makes anew alive.)
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = self.flops = 0
        self._known: set[int] = set()

    def hold(self, tensor: Tensor) -> None:
        """Count the memory behind a tensor, until it is gone."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if tensor.device.type != "meta" or key in self._known:
            return
        self._known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._release, key, size)

    def forget(self) -> None:
        """Count anew, but for what is alive."""
        self.peak, self.flops = self.bytes, 0

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if op is aten._local_scalar_dense.default and args[0].is_meta:
            return 1  # what is asked of numbers that nobody knows: whether they are finite, whether there are any
        if op is aten._to_copy.default and args[0].is_meta and kwargs.get("device", args[0].device).type == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if op.overloadpacket not in FLOPS:  # in inference mode torch leaves taking it apart to us
            with self:
                if (out := op.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        # On the meta device a fused optimizer makes everything anew.
        out = None if op.overloadpacket is aten._fused_adamw_ and args[0][0].is_meta else op(*args, **kwargs)
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self.hold(each)
        if op.overloadpacket in FLOPS:
            self.flops += FLOPS[op.overloadpacket](*args, **kwargs, out_val=out)
        return out


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend by a fused kernel, which keeps no scores; on the meta device torch itself would write them out."""
    if attn_mask is not None:
        attn_mask = q.new_empty(attn_mask.shape)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return FUSED(q, k, v, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


class Halved:
    """Autocast to bf16, which the meta device has not: products get bf16, and so do copies of their weights.

    Args:
        on: Whether it does so, but for blocks of `autocast(enabled=False)`.

    Attributes:
        copies: Of weights that learn, which are copied once until this is cleared.
    """

    def __init__(self, on: bool):
        self.on = on
        self.copies: dict[Tensor, Tensor] = {}

    def of(self, product: Any) -> Any:
        """Return what takes the place of a product."""

        def halved(*args: Any, **kwargs: Any) -> Any:
            if self.on:
                args, kwargs = tree_map(self._half, (args, kwargs))
            return product(*args, **kwargs)

        return halved

    @contextmanager
    def autocast(self, device_type: str, dtype: Any = None, enabled: bool = True, **_: Any) -> Iterator[None]:
        """Stand in for `torch.autocast`."""
        before, self.on = self.on, self.on and enabled
        try:
            yield
        finally:
            self.on = before

    def _half(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.bfloat16()
        if value not in self.copies:
            self.copies[value] = value.bfloat16()
        return self.copies[value]


ATTENDS = (ddt_tokenizer.attend, ddt_decoder.attend, ddt_llm.attend)


def written_out(q: Tensor, k: Tensor) -> bool:
    """Take the place of `better_written_out`, as if the tensors were on the CPU."""
    return q.dtype == torch.bfloat16 and k.shape[2] <= ddt_tokenizer.attend.LONGEST


@contextmanager
def on_meta(mixed: bool, cpu: bool = False) -> Iterator[Halved]:
    """Let code that asks for values, or for autocast, run on the meta device: masks choose all rows.

    Args:
        mixed: Whether products are taken in bf16.
        cpu: Whether attention is that of a CPU.
    """
    halved = Halved(mixed)
    stand_ins = [
        (torch, "autocast", halved.autocast),
        (torch.amp, "autocast", halved.autocast),  # by this name activation checkpointing has them
        (torch.amp, "is_autocast_available", lambda *_: True),
        (torch, "is_autocast_enabled", lambda *_: halved.on),
        (torch, "get_autocast_dtype", lambda *_: torch.bfloat16),
        (shapes, "meta_nonzero_assume_all_nonzero", True),
        (adam, "_device_dtype_check_for_fused", lambda *_, **__: None),
        (F, "scaled_dot_product_attention", halved.of(attend)),
        *((owner, name, halved.of(getattr(owner, name))) for owner, name in PRODUCTS),
        *((module, "better_written_out", written_out) for module in ATTENDS if cpu),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in stand_ins]
    try:
        for owner, name, stand_in in stand_ins:
            setattr(owner, name, stand_in)
        yield halved
    finally:
        for owner, name, theirs in before:
            setattr(owner, name, theirs)


class Step:
    """A step of a `LightningModule` on the meta device.

    Args:
        module: With its weights on the meta device.
        batch: What `training_step` gets.
        mixed: Whether products are taken in bf16.
        cpu: Whether attention is that of a CPU.
        clip: Largest norm of the gradients, if they are clipped.

    Attributes:
        weights, gradients, optimizer, activations: Bytes of each at the peak; activations are all that is left.
        flops: Of the passes forward and backward; see `Ledger`.
    """

    def __init__(self, module: Any, batch: Any, mixed: bool, cpu: bool = False, clip: float | None = None):
        configured = module.configure_optimizers()
        optimizers = configured if isinstance(configured, list) else [configured["optimizer"]]
        stand_in = SimpleNamespace(global_step=0, global_rank=0, accumulate_grad_batches=1, precision="32-true")
        module.trainer = stand_in
        module.log_dict = module.log = lambda *_, **__: None
        module.optimizers = lambda **_: optimizers if isinstance(configured, list) else optimizers[0]
        module.lr_schedulers = lambda: SimpleNamespace(get_last_lr=lambda: [0.0])
        module.manual_backward = lambda loss: loss.backward()
        module.on_train_batch_start(batch, 0)

        ledger = Ledger()
        for tensor in (*module.parameters(), *module.buffers()):
            ledger.hold(tensor)
        self.weights = ledger.bytes
        for tensor in tree_leaves(batch):
            ledger.hold(tensor)
        held = ledger.bytes

        def passes() -> bool:
            """Run forward and backward; return whether the module has stepped by itself."""
            loss = module.training_step(batch, 0)
            halved.copies.clear()
            loss = loss["loss"] if isinstance(loss, dict) else loss
            if loss is not None:
                loss.backward()
            return loss is None

        def step() -> None:
            module.on_before_optimizer_step(optimizers[0])
            if clip:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizers[0].step()

        with on_meta(mixed, cpu) as halved, ledger:
            if by_itself := passes():  # from now on optimizers have what they keep
                module.zero_grad()
                self.optimizer = ledger.bytes - held
                ledger.forget()
                passes()
            self.flops, peak = ledger.flops, ledger.peak
            if not by_itself:
                ledger.forget()
                passed = ledger.bytes
                step()
                self.optimizer = ledger.bytes - passed
                ledger.forget()
                step()  # with what it keeps already
                peak = max(peak + self.optimizer, ledger.peak)
        self.gradients = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
        self.activations = max(0, peak - self.weights - self.optimizer - self.gradients)


def count(module: nn.Module) -> tuple[int, int]:
    """Return how many weights a module has, and how many of them learn."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
