"""Our own kernels for few rows on a CPU, from kernels.c: compiled for this machine at first use, then cached.

Promises: what `linear` and `Layer` compute, up to rounding, at the speed of reading the weights once; a row's bits do
not depend on the other rows of the pass, up to FEW_ROWS of them (of a pass that reads a prompt: up to half as many again, from 32 rows
on in another order of sums): beyond, torch computes, whose bits do. Where there is no
compiler, or FOREDRAFT_KERNELS is 0, `missing()` says why and torch computes too; "pairs" does without the processor's tiles.
Refuses to know: what a pass is for.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from ctypes import c_float, c_int, c_long, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foredraft.models.cache import KVCache
from foredraft.models.eight_bits import EightBits
from foredraft.shapes import Shape

SOURCE = Path(__file__).with_suffix(".c")
# Rows up to which these kernels are ahead of torch's (results/few_rows.json; with tiles docs/log.md), float32 a little beyond, where a row's bits are
# worth more than its time. With units that multiply pairs of bfloat16, but no tiles of them, torch is ahead sooner.
_PAIRS_ONLY = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
FEW_ROWS = {torch.float32: 128, torch.bfloat16: 64 if _PAIRS_ONLY else 128}
STEP = {torch.float32: 16, torch.bfloat16: 32}  # what inner sizes must be a multiple of; 16 does for a head's
ACTIVATIONS = {"silu": 0, "swish": 0, "relu": 1, "gelu": 2}
# OpenMP stays unlinked: its symbols are those that torch has loaded, so that both share one pool of threads.
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared", "-nodefaultlibs", "-lm", "-lc")


class KernelsMissing(Exception):
    """Why there are no kernels here."""


def missing(dtype: torch.dtype = torch.float32) -> str | None:
    """Why this machine computes without these kernels; None where it has them."""
    try:
        _library(dtype)
    except KernelsMissing as error:
        return str(error)
    return None


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    if os.environ.get("FOREDRAFT_KERNELS") == "0":
        raise KernelsMissing("FOREDRAFT_KERNELS=0")
    compiler = next(
        (path for name in (os.environ.get("CC"), "gcc", "cc") if name and (path := shutil.which(name))), None
    )
    if compiler is None:
        raise KernelsMissing("no C compiler found")
    try:
        library = ctypes.CDLL(str(_compiled(compiler, dtype)))
    except (OSError, subprocess.SubprocessError) as error:
        message = getattr(error, "stderr", "") or str(error)
        raise KernelsMissing(f"{compiler} could not build them: {message.strip().splitlines()[0]}") from None
    library.linear.argtypes = [c_void_p] * 5 + [c_long] * 3 + [c_int]
    library.layers.argtypes = [c_void_p, c_long, *[c_void_p] * 5, c_long, c_void_p, c_void_p]
    library.chain.argtypes = [c_void_p] * 7 + [c_long] * 2 + [c_void_p] * 4
    library.largest.argtypes, library.largest.restype = [c_void_p, *[c_long] * 2, *[c_void_p] * 2, c_int], None
    library.block.argtypes = [c_void_p] * 5 + [c_long] * 3 + [c_void_p] * 2 + [c_long, *[c_void_p] * 3]
    library.block.restype = c_int
    library.tree.argtypes = [c_void_p] * 8 + [c_long, *[c_void_p] * 2]
    library.linear.restype, library.layers.restype, library.chain.restype, library.tree.restype = (
        None,
        c_int,
        c_int,
        c_int,
    )
    if os.environ.get("FOREDRAFT_KERNELS") != "pairs":
        library.tiled()
    return library


def _compiled(compiler: str, dtype: torch.dtype) -> Path:
    """The library's file, built unless one of this source, compiler and processor is there already."""
    flags = (*_FLAGS, "-DBF16") if dtype == torch.bfloat16 else _FLAGS
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256("\n".join((SOURCE.read_text(), version, *flags, _processor())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foredraft"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _require_private(folder)
    library = next(filter(_is_sound, folder.glob(f"kernels-{key}-*.so")), None)
    if library is None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / "kernels.so"
            command = [compiler, *flags[:5], str(SOURCE), "-o", str(built), *flags[5:]]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            built.chmod(0o755)
            library = folder / f"kernels-{key}-{_digest(built)}.so"
            built.replace(library)
    return library


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def _is_private(path: Path) -> bool:
    """Whether only this user, or root, can write a file or into a folder."""
    status = path.stat()
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _require_private(folder: Path) -> None:
    if not _is_private(folder):
        raise KernelsMissing(
            f"{folder}: others can write there, and what lies there is run; chmod 700 it, or name another XDG_CACHE_HOME"
        )


def _is_sound(library: Path) -> bool:
    """Whether a cached library is what was built, by the digest in its name, and nobody else's."""
    return _is_private(library) and library.stem.rpartition("-")[2] == _digest(library)


def _cpuinfo() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text().splitlines() if cpuinfo.exists() else [f"model name: {platform.processor()}"]


def processor_name() -> str:
    """The processor's name as it gives it, and whether it has tiles: a rented one may hide its model, and what a row was timed on with it."""
    names = (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name"))
    tiles = " with AMX" if torch.cpu._is_amx_tile_supported() else ""
    return (next(names, "") or platform.machine()) + tiles


def _processor() -> str:
    """What -march=native depends on."""
    return "\n".join(sorted({line for line in _cpuinfo() if line.startswith(("model name", "flags", "Features"))}))


def usable(rows: int, dtype: torch.dtype, device: torch.device, *, prompt: bool = False) -> bool:
    """Whether so few rows are worth it, of a type that is compiled for, on a CPU, outside training; of a prompt half as many again."""
    most = FEW_ROWS.get(dtype, 0)
    return 0 < rows <= most + prompt * most // 2 and not torch.is_grad_enabled() and able(dtype, device)


def able(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether these kernels are there for this type and device."""
    return device.type == "cpu" and dtype in FEW_ROWS and _have(dtype)


def most_rows(model: Any) -> int:
    """Of how many rows a pass of the model runs by these kernels at most; 0: none does."""
    return FEW_ROWS[model.dtype] if model.dtype in model.kernel_dtypes and able(model.dtype, model.device) else 0


@functools.cache
def _have(dtype: torch.dtype) -> bool:
    return missing(dtype) is None


def chunk(tokens: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many of a prompt's tokens to read in a pass: all, or even parts that these kernels take where that is worth it."""
    most = FEW_ROWS.get(dtype, 0)
    if most < 64 or not usable(1, dtype, device):
        return max(tokens, 1)
    return -(-max(tokens, 1) // max(round(tokens / most), 1))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, eight: EightBits | None = None) -> Tensor:
    """x·Wᵀ + b, for what `fits_linear`; of `eight` where the matrix is there in eight bits."""
    x = x.contiguous()
    out, size = weight.shape
    y = torch.empty(*x.shape[:-1], out, dtype=x.dtype)
    values, scale = (weight, None) if eight is None else eight
    _library(x.dtype).linear(
        x.data_ptr(), values.data_ptr(), _address(scale), _address(bias), y.data_ptr(), x.numel() // size, size, out, torch.get_num_threads(),
    )  # fmt: skip
    return y


def first_largest(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The largest number of each row (NaN where one is), in float32, and where it stands first; of what is `able`."""
    x = rows.contiguous()
    most, at = torch.empty(x.shape[:-1]), torch.empty(x.shape[:-1], dtype=torch.long)
    _library(x.dtype).largest(
        x.data_ptr(), at.numel(), x.shape[-1], at.data_ptr(), most.data_ptr(), torch.get_num_threads()
    )
    return most, at


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def fits_linear(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` can multiply these."""
    rows, same = x.numel() // x.shape[-1], x.dtype == weight.dtype
    return usable(rows, x.dtype, x.device) and same and weight.shape[1] % STEP[x.dtype] == 0 and weight.is_contiguous()


def fits_layer(shape: Shape, model_config: Any) -> frozenset[torch.dtype]:
    """Types in which every layer of such a model can run here: sizes that fill the registers, norms before, a known function."""
    sizes = (shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim)
    if not model_config.pre_norm or model_config.activation not in ACTIVATIONS or shape.head_dim % 16:
        return frozenset()
    return frozenset(dtype for dtype, step in STEP.items() if all(size % step == 0 for size in sizes))


class _Matrix(ctypes.Structure):
    """kernels.c's `Matrix`."""

    _fields_ = [(name, c_void_p) for name in ("w", "scale", "bias")]


class _Layer(ctypes.Structure):
    """kernels.c's `Layer`."""

    _fields_ = [
        *((name, _Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, c_void_p) for name in ("in_norm", "in_norm_bias", "q_norm", "k_norm", "out_norm", "out_norm_bias")),
        *((name, c_long) for name in ("hidden", "attention_in", "heads", "key_heads", "head_dim", "inner")),
        ("activation", c_int), ("layer_norm", c_int), ("eps", c_float), ("qk_eps", c_float),
    ]  # fmt: skip


class _Draft(ctypes.Structure):
    """kernels.c's `Draft`."""

    _fields_ = [
        ("embed", c_void_p), ("fc", _Matrix), ("head", _Matrix), ("before", c_void_p), ("after", _Matrix),
        *((name, c_void_p) for name in ("embed_norm", "left_norm", "norm", "norm_bias", "d2t", "layers")),
        *((name, c_long) for name in ("count", "room", "hidden", "vocabulary", "words", "rank")),
        *((name, c_int) for name in ("layer_norm", "normed_residual", "leaves_normed")), ("eps", c_float),
    ]  # fmt: skip


class _Policy(ctypes.Structure):
    """kernels.c's `Policy`."""

    _fields_ = [
        *((name, c_long) for name in ("levels", "children", "proposed")),
        *((name, c_void_p) for name in ("counts", "extended", "places")),
    ]


class _Pass(ctypes.Structure):
    """kernels.c's `Pass`."""

    _fields_ = [
        *((name, c_void_p) for name in ("cos", "sin", "slots", "positions", "places", "mask")),
        *((name, c_long) for name in ("batch", "tokens", "seen", "mask_batch_stride")),
        *((name, c_long) for name in ("turns", "cache_batch", "cache_slots", "cache_batch_stride", "cache_head_stride")),
        ("threads", c_int), ("prompt", c_int),
    ]  # fmt: skip


class StoredMatrix(NamedTuple):
    """A matrix as it is multiplied: its weight, the same in eight bits where it is kept so, its bias."""

    weight: Tensor
    eight: EightBits | None
    bias: Tensor | None


class _Weights:
    """Where weights lie, which are held from then on."""

    def __init__(self) -> None:
        self._held: list[Tensor | None] = []

    def _matrix(self, module: Any) -> _Matrix:
        if module is None:
            return _Matrix()
        return self._stored(*module.stored)

    def _stored(self, weight: Tensor, eight: EightBits | None, bias: Tensor | None) -> _Matrix:
        values, scale = eight or (weight, None)
        return _Matrix(w=self._at(values), scale=self._at(scale), bias=self._at(bias))

    def _at(self, tensor: Tensor | None) -> int | None:
        assert tensor is None or tensor.is_contiguous()
        self._held.append(tensor)
        return _address(tensor)


class LayerWeights(_Weights):
    """Where a layer's weights lie."""

    def __init__(self, layer: Any, shape: Shape, model_config: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        matrices = {
            "q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "o": attention.o_proj,
            "gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj,
        }  # fmt: skip
        norms = {"in_norm": layer.input_layernorm, "out_norm": layer.post_attention_layernorm}
        norms |= {"q_norm": attention.q_norm, "k_norm": attention.k_norm}
        few, heads = shape.num_kv_heads * shape.head_dim, shape.num_heads * shape.head_dim
        self.room = shape.hidden_size + 2 * heads + 2 * few + 2 * shape.intermediate_size
        self.struct = _Layer(
            **{name: self._matrix(module) for name, module in matrices.items()},
            **{name: self._at(getattr(module, "weight", None)) for name, module in norms.items()},
            in_norm_bias=self._at(getattr(layer.input_layernorm, "bias", None)),
            out_norm_bias=self._at(getattr(layer.post_attention_layernorm, "bias", None)),
            hidden=shape.hidden_size, attention_in=attention.q_proj.in_features, heads=shape.num_heads, key_heads=shape.num_kv_heads,
            head_dim=shape.head_dim, inner=shape.intermediate_size, activation=ACTIVATIONS[model_config.activation],
            layer_norm=isinstance(layer.post_attention_layernorm, nn.LayerNorm), eps=model_config.norm_eps, qk_eps=model_config.norm_eps,
        )  # fmt: skip


class Stack:
    """Layers that run one behind another, the first of which is `index` in the cache. Made once: the module drops it when its weights move
    (`nn.Module._apply`).
    """

    def __init__(self, layers: Iterable[Any], index: int = 0) -> None:
        self.layers, self.index = [LayerWeights(layer, layer.shape, layer.config) for layer in layers], index
        self.addresses = (c_void_p * len(self.layers))(*(ctypes.addressof(layer.struct) for layer in self.layers))


def _pass_of(
    rotation: tuple[Tensor, Tensor] | None, cache: KVCache, slots_BT: Tensor, *, prompt: bool = False
) -> _Pass:
    """What a pass says beside its positions and its mask."""
    cos, sin = rotation or (None, None)
    return _Pass(
        cos=_address(cos), sin=_address(sin), turns=0 if cos is None else len(cos), slots=slots_BT.data_ptr(), places=_address(cache.places),
        batch=slots_BT.shape[0], tokens=slots_BT.shape[1], cache_batch=cache.kv.shape[2], cache_slots=cache.slots,
        cache_batch_stride=cache.kv.stride(2), cache_head_stride=cache.kv.stride(3), threads=torch.get_num_threads(), prompt=prompt,
    )  # fmt: skip


class ChainWeights(_Weights):
    """Where the weights of a draft lie, its layers' and those around them (`chain`)."""

    def __init__(self, model: Any, entry: Any, table_VC: Tensor, head: StoredMatrix, words: int | None) -> None:
        super().__init__()
        self.stack = Stack(model.layers)
        self.struct = _Draft(
            embed=self._at(table_VC), fc=self._matrix(entry.fc), head=self._stored(*head), d2t=self._at(model.d2t),
            before=self._at(getattr(entry.before, "weight", None)), after=self._matrix(entry.after),
            rank=entry.after.in_features if entry.after else 0,
            embed_norm=self._at(getattr(entry.embed_norm, "weight", None)), left_norm=self._at(getattr(entry.left_norm, "weight", None)),
            norm=self._at(getattr(model.norm, "weight", None)), norm_bias=self._at(getattr(model.norm, "bias", None)),
            layers=ctypes.addressof(self.stack.addresses), count=len(self.stack.layers), room=self.stack.layers[0].room,
            hidden=model.shape.hidden_size, vocabulary=len(table_VC), words=min(words or len(head.weight), len(head.weight)),
            layer_norm=isinstance(model.norm, nn.LayerNorm), normed_residual=entry.normed_residual, leaves_normed=entry.leaves_normed,
            eps=model.config.norm_eps,
        )  # fmt: skip


def run_chain(
    weights: ChainWeights,
    rotation: tuple[Tensor, Tensor] | None,
    cache: KVCache,
    inputs: tuple[Tensor, Tensor | None, Tensor, Tensor],
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """`inputs`: tokens [B, M], what was left beside them [B, M, C], slots, indices [B]; `outputs` are as kernels.c's `chain` fills them."""
    tokens, left, slots, last = (None if each is None else each.contiguous() for each in inputs)
    assert slots is not None
    struct = _pass_of(rotation, cache, slots)
    keys = cache.kv.data_ptr()
    outside = _library(cache.kv.dtype).chain(
        ctypes.addressof(weights.struct), ctypes.addressof(struct), _address(tokens), _address(left), _address(last), keys,
        keys + cache.kv.stride(1) * cache.kv.element_size(), cache.kv.stride(0), len(outputs[0]), *map(_address, outputs),
    )  # fmt: skip
    if outside:
        raise IndexError(
            f"a chain of {len(outputs[0])} behind {slots.shape[0]} sequences leaves a cache of {cache.batch} × {cache.slots}, or its vocabulary"
        )


def run_block(
    weights: ChainWeights,
    rotation: tuple[Tensor, Tensor] | None,
    cache: KVCache,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    first: int,
    outputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    """`inputs`: tokens of blocks [B, T], their slots, what to remember of the context [B, M, C], its slots [B, M]; `outputs` are as kernels.c's
    `block` fills them.
    """
    tokens, slots, context, known = (each.contiguous() for each in inputs)
    struct, keys = _pass_of(rotation, cache, slots), cache.kv.data_ptr()
    outside = _library(cache.kv.dtype).block(
        ctypes.addressof(weights.struct), ctypes.addressof(struct), _address(tokens), _address(context), _address(known), known.shape[1], first,
        len(outputs[0]), keys, keys + cache.kv.stride(1) * cache.kv.element_size(), cache.kv.stride(0), *map(_address, outputs),
    )  # fmt: skip
    if outside:
        raise IndexError(
            f"a block of {slots.shape[1]} behind {slots.shape[0]} sequences leaves a cache of {cache.batch} × {cache.slots}, or its vocabulary"
        )


class TreePlan(NamedTuple):
    """A tree of `levels`, `children` words behind each node that is extended, of which so many are proposed. Of a static one the places of what
    is extended among the words of each level but the last, and of what is proposed among all; a dynamic one goes by their probabilities.
    """

    levels: int
    children: int
    proposed: int
    extended: tuple[tuple[int, ...], ...] | None = None
    places: tuple[int, ...] | None = None

    @property
    def widest(self) -> int:
        """Nodes of a level that are read."""
        return max(map(len, self.extended), default=1) if self.extended is not None else self.children


def run_tree(
    weights: ChainWeights,
    rotation: tuple[Tensor, Tensor] | None,
    cache: KVCache,
    inputs: tuple[Tensor, Tensor | None, Tensor, Tensor],
    plan: TreePlan,
    outputs: tuple[Tensor, Tensor],
) -> bool:
    """`inputs` as of `run_chain`; `outputs` are as kernels.c's `tree` fills them. False where a score is NaN."""
    tokens, left, slots, last = (None if each is None else each.contiguous() for each in inputs)
    assert slots is not None
    struct, keys = _pass_of(rotation, cache, slots), cache.kv.data_ptr()
    policy = _Policy(levels=plan.levels, children=plan.children, proposed=plan.proposed)
    lists: list[Tensor] = []
    if plan.extended is not None and plan.places is not None:
        flat = [place for level in plan.extended for place in level]
        lists = [torch.tensor(each, dtype=torch.long) for each in ([*map(len, plan.extended)], flat, plan.places)]
        policy.counts, policy.extended, policy.places = map(_address, lists)
    state = _library(cache.kv.dtype).tree(
        ctypes.addressof(weights.struct), ctypes.addressof(struct), ctypes.addressof(policy), _address(tokens), _address(left), _address(last),
        keys, keys + cache.kv.stride(1) * cache.kv.element_size(), cache.kv.stride(0), *map(_address, outputs),
    )  # fmt: skip
    if state == -1:
        raise IndexError(
            f"a tree of {plan.levels} levels behind {slots.shape[0]} sequences leaves a cache of {cache.batch} × {cache.slots}, or its vocabulary"
        )
    return state == 0


class KernelPass(NamedTuple):
    """One pass's tokens, seen by the kernels; holds what its addresses point to."""

    struct: _Pass
    cache: KVCache
    inputs: tuple[Tensor | None, ...]
    run: Any

    @classmethod
    def of(
        cls,
        rotation: tuple[Tensor, Tensor] | None,
        cache: KVCache,
        slots_BT: Tensor,
        positions_BT: Tensor,
        mask_BTS: Tensor,
        dtype: torch.dtype,
        *,
        prompt: bool = False,
    ) -> "KernelPass":
        """`rotation`: `Rotary.table`; the cache may be a view of some rows. `prompt`: whether the pass reads one."""
        slots, positions, mask = slots_BT.contiguous(), positions_BT.contiguous(), mask_BTS.contiguous()
        struct = _pass_of(rotation, cache, slots, prompt=prompt)
        struct.positions, struct.mask, struct.seen = positions.data_ptr(), mask.data_ptr(), mask.shape[2]
        struct.mask_batch_stride = 0 if mask.shape[0] == 1 else slots.shape[1] * mask.shape[2]
        inputs = (slots, mask, positions, cache.places, *(rotation or ()))
        return cls(struct, cache, inputs, _library(dtype).layers)

    def layers(
        self, stack: Stack, x_BTC: Tensor, normed_BTI: Tensor | None = None, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """What layers `start` to `stop` of the stack make of x; `normed_BTI` is what the first one's attention reads, its own norm of x where
        None.
        """
        kv, x, count = self.cache.kv, x_BTC.contiguous(), (len(stack.layers) if stop is None else stop) - start
        y, room = torch.empty_like(x), torch.empty(stack.layers[start].room * x.shape[0] * x.shape[1], dtype=x.dtype)
        keys = kv.data_ptr() + (stack.index + start) * kv.stride(0) * kv.element_size()
        values = keys + kv.stride(1) * kv.element_size()
        normed = None if normed_BTI is None else normed_BTI.contiguous()
        outside = self.run(
            ctypes.addressof(stack.addresses) + start * ctypes.sizeof(c_void_p), count, ctypes.addressof(self.struct), x.data_ptr(),
            None if normed is None else normed.data_ptr(), keys, values, kv.stride(0), y.data_ptr(), room.data_ptr(),
        )  # fmt: skip
        if outside:
            slots, mask, *_ = self.inputs
            assert slots is not None, "a pass writes"
            assert mask is not None, "a pass has a mask"
            raise IndexError(
                f"a pass of {len(slots)} sequences over {mask.shape[2]} slots leaves a cache of {self.cache.batch} × {self.cache.slots}"
            )
        return y
