"""What the pickle in a checkpoint may name, call and alter, and what each of these gives.

Nothing here is looked up by a name that a file states: the tables below are all there is, and the
functions in them build plain values and check what they are given.
"""

from __future__ import annotations

import re
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mapsage_kaggle.outside import visible

STATISTICS = ("min", "max", "current", "mean")
"""The methods that mmengine registers in every ``HistoryBuffer``, which its pickles name."""

_HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
_HISTORY_STATE = frozenset({"statistics_methods", "_log_history", "_count_history", "max_length"})


class UnsafeError(ValueError):
    """The pickle asks for something that no checkpoint needs, or is malformed."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name that a file may mention. Inert: it stands for the thing and is not it."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageInfo:
    """A block of tensor data elsewhere in the file.

    Attributes:
        key: Its name in the file, below ``data/``.
        dtype: Element type, such as ``float32``; ``uint8`` where the file says bytes.
    """

    key: str
    dtype: str
    num_elements: int

    @property
    def entry(self) -> str:
        return f"data/{self.key}"

    @property
    def size_bytes(self) -> int:
        return self.num_elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """A tensor as the file describes it: a window on a storage, without its data.

    Attributes:
        dtype: Element type, such as ``float32``.
        stride: Steps by dimension, in elements.
        offset: First element, counted from the storage's start.
        requires_grad: Whether gradients are wanted for it.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: StorageInfo
    requires_grad: bool = False

    @property
    def num_elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def last_element(self) -> int:
        """The highest element of the storage that it reaches; ``offset - 1`` for an empty tensor."""
        if self.num_elements == 0:
            return self.offset - 1
        steps = zip(self.shape, self.stride, strict=True)
        return self.offset + sum((size - 1) * step for size, step in steps)


@dataclass(slots=True)
class ArrayInfo:
    """A NumPy array as the file describes it. Filled in two steps, as pickles do."""

    dtype: str = "|u1"
    shape: tuple[int, ...] = (0,)
    fortran_order: bool = False
    data: bytes = b""


@dataclass(slots=True)
class HistoryInfo:
    """A ``HistoryBuffer`` of mmengine: a scalar's values and how many samples each stands for."""

    log: Any = field(default_factory=ArrayInfo)
    count: Any = field(default_factory=ArrayInfo)
    max_length: int = 1_000_000


class Builder(Protocol):
    """Makes the values that are more than plain Python. It is given checked arguments only."""

    tensor_types: tuple[type, ...]
    array_types: tuple[type, ...]
    history_types: tuple[type, ...]

    def tensor(self, info: TensorInfo) -> Any: ...

    def new_array(self) -> Any:
        """Return an array to be filled by :meth:`fill_array`."""

    def fill_array(self, array: Any, info: ArrayInfo) -> None:
        """Give an array its type, shape and data."""

    def scalar(self, dtype: str, data: bytes) -> Any: ...

    def new_history(self) -> Any:
        """Return a history to be filled by :meth:`fill_history`."""

    def fill_history(self, history: Any, info: HistoryInfo) -> None: ...

    def symbol(self, symbol: Symbol) -> Any:
        """Return what stands for a torch dtype, or for a device named ``torch.device:<text>``."""


class Describe:
    """Builds descriptions. Needs neither torch nor NumPy."""

    tensor_types: tuple[type, ...] = (TensorInfo,)
    array_types: tuple[type, ...] = (ArrayInfo,)
    history_types: tuple[type, ...] = (HistoryInfo,)

    def tensor(self, info: TensorInfo) -> Any:
        return info

    def new_array(self) -> Any:
        return ArrayInfo()

    def fill_array(self, array: Any, info: ArrayInfo) -> None:
        array.dtype, array.shape = info.dtype, info.shape
        array.fortran_order, array.data = info.fortran_order, info.data

    def scalar(self, dtype: str, data: bytes) -> Any:
        """Return the Python number or text; the bytes of a complex number."""
        if dtype[1] == "U":
            return data.decode("utf-32-be" if dtype[0] == ">" else "utf-32-le").rstrip("\0")
        code = _STRUCT.get(dtype[1:])
        order = ">" if dtype[0] == ">" else "<"
        return struct.unpack(order + code, data)[0] if code else data

    def new_history(self) -> Any:
        return HistoryInfo()

    def fill_history(self, history: Any, info: HistoryInfo) -> None:
        history.log, history.count, history.max_length = info.log, info.count, info.max_length

    def symbol(self, symbol: Symbol) -> Any:
        return symbol


_STRUCT = {
    "f8": "d", "f4": "f", "f2": "e", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip

_OTHER_CODES = re.compile(r"c8|c16|[SU][1-9][0-9]{0,4}")
"""Complex numbers and text of fixed length. Never ``O``: an array of objects is a pickle of its own."""

ITEM_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2,
    "int8": 1, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1, "complex64": 8,
    "complex128": 16, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
"""Bytes per element of the torch types that are understood."""

_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})
_LOCATION = re.compile(r"(?:cpu|cuda|mps|xpu)(?::[0-9]{1,3})?")
_KEY = re.compile(r"[0-9]{1,20}")
"""Of a storage: torch counts them, or takes an address."""

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
    "storage.UntypedStorage": "uint8", "UntypedStorage": "uint8",
}  # fmt: skip


class _DType:
    """A NumPy dtype while it is being read: the type code first, the byte order after."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, order: str = "<") -> None:
        self.code = code
        self.order = order

    @property
    def text(self) -> str:
        plain = self.code[1:] == "1" or self.code[0] == "S"
        return ("|" if plain and self.code[0] != "U" else self.order) + self.code

    @property
    def item_bytes(self) -> int:
        return int(self.code[1:]) * (4 if self.code[0] == "U" else 1)


_Call = Callable[[tuple[Any, ...], Builder], Any]


def _refuse_args(name: str, args: Any) -> UnsafeError:
    return UnsafeError(f"{name} is called with {_kinds(args)}, which no checkpoint does")


def _kinds(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(_short(item) for item in value[:6]) + ")"
    return _short(value)


def _short(value: Any) -> str:
    if type(value) is str:
        return f"{visible(value, 60)!r}"
    if type(value) in (Symbol, bool, int, float) or value is None:
        return visible(str(value), 80)
    return type(value).__name__


def cost_of(arguments: Any) -> int:
    """Return about how many bytes a call or a state can make of its arguments, which may be shared."""
    total = 600
    for item in arguments if type(arguments) is tuple else (arguments,):
        if type(item) in (list, tuple, dict, OrderedDict):
            total += 120 * len(item)
        elif type(item) in (str, bytes):
            total += len(item)
    return total


def _sizes(value: Any) -> tuple[int, ...] | None:
    """Return a tuple of sizes, or None where it is not one of at most 32 non-negative integers."""
    if type(value) is not tuple or len(value) > 32:
        return None
    return value if all(type(item) is int and 0 <= item < 2**48 for item in value) else None


def _is_empty(argument: tuple[Any, ...]) -> bool:
    """Whether hooks or metadata are empty: torch would change the tensor by them."""
    return all(item is None or (type(item) in (dict, OrderedDict) and not item) for item in argument)


def _check_gradient(name: str, dtype: str, requires_grad: bool) -> None:
    if requires_grad and not dtype.startswith(("float", "bfloat", "complex")):
        raise UnsafeError(f"{name} wants a gradient for {dtype}, which torch refuses")


def _make_tensor(
    name: str,
    args: tuple[Any, ...],
    build: Builder,
    *,
    dtype: str | None = None,
    has_metadata: bool = False,
) -> Any:
    storage, offset, shape, stride, requires_grad = args[:5]
    sizes, steps = _sizes(shape), _sizes(stride)
    if (
        type(storage) is not StorageInfo
        or type(offset) is not int
        or not 0 <= offset < 2**48
        or sizes is None
        or steps is None
        or len(sizes) != len(steps)
        or type(requires_grad) is not bool
        or not _is_empty(args[5:6])
        or not _is_empty(args[-1:] if has_metadata else ())
    ):
        raise _refuse_args(name, args)
    info = TensorInfo(
        dtype=dtype or storage.dtype,
        shape=sizes,
        stride=steps,
        offset=offset,
        storage=storage,
        requires_grad=requires_grad,
    )
    _check_gradient(name, info.dtype, requires_grad)
    if (info.last_element + 1) * ITEM_BYTES[info.dtype] > storage.size_bytes:
        raise UnsafeError(
            f"a tensor of shape {sizes} reaches beyond its storage {storage.key}, "
            f"which has {storage.num_elements} elements"
        )
    if info.num_elements * ITEM_BYTES[info.dtype] > storage.size_bytes:
        raise UnsafeError(f"a tensor of shape {sizes} repeats its elements, which no checkpoint does")
    return build.tensor(info)


def _call_tensor_v2(args: tuple[Any, ...], build: Builder) -> Any:
    if len(args) not in (6, 7):
        raise _refuse_args("torch._utils._rebuild_tensor_v2", args)
    return _make_tensor("torch._utils._rebuild_tensor_v2", args, build, has_metadata=len(args) == 7)


def _call_tensor(args: tuple[Any, ...], build: Builder) -> Any:
    if len(args) != 4:
        raise _refuse_args("torch._utils._rebuild_tensor", args)
    return _make_tensor("torch._utils._rebuild_tensor", (*args, False), build)


def _call_tensor_v3(args: tuple[Any, ...], build: Builder) -> Any:
    name = "torch._utils._rebuild_tensor_v3"
    if len(args) not in (7, 8):
        raise _refuse_args(name, args)
    kind = type(build.symbol(Symbol("torch.float32")))
    symbols = ((dtype, build.symbol(Symbol(f"torch.{dtype}"))) for dtype in ITEM_BYTES)
    alike = (dtype for dtype, symbol in symbols if type(args[6]) is kind and args[6] == symbol)
    if (dtype := next(alike, None)) is None:
        raise _refuse_args(name, args)
    return _make_tensor(name, args, build, dtype=dtype, has_metadata=len(args) == 8)


def _call_size(args: tuple[Any, ...], build: Builder) -> Any:
    items = args[0] if len(args) == 1 else None
    sizes = _sizes(tuple(items) if type(items) is list and len(items) <= 32 else items)
    if sizes is None:
        raise _refuse_args("torch.Size", args)
    return sizes


def _call_device(args: tuple[Any, ...], build: Builder) -> Any:
    if not (
        len(args) in (1, 2)
        and type(args[0]) is str
        and args[0] in _DEVICES
        and all(type(index) is int and 0 <= index < 128 for index in args[1:])
    ):
        raise _refuse_args("torch.device", args)
    return build.symbol(Symbol("torch.device:" + ":".join(str(item) for item in args)))


def _call_ordered_dict(args: tuple[Any, ...], build: Builder) -> Any:
    result: OrderedDict[Any, Any] = OrderedDict()
    if args == ():
        return result
    if len(args) == 1 and type(args[0]) is list:
        for pair in args[0]:
            if type(pair) not in (list, tuple) or len(pair) != 2:
                raise _refuse_args("collections.OrderedDict", args)
            result[checked_key(pair[0])] = pair[1]
        return result
    raise _refuse_args("collections.OrderedDict", args)


def _call_counter(args: tuple[Any, ...], build: Builder) -> Any:
    if len(args) != 1 or type(args[0]) is not dict or not all(type(item) is int for item in args[0].values()):
        raise _refuse_args("collections.Counter", args)
    result: Counter[Any] = Counter()
    dict.update(result, args[0])
    return result


def _call_config_dict(args: tuple[Any, ...], build: Builder) -> Any:
    if args == ():
        return {}
    if len(args) == 1 and type(args[0]) is dict:
        return dict(args[0])
    raise _refuse_args("mmengine.config.config.ConfigDict", args)


def _call_set(args: tuple[Any, ...], build: Builder) -> Any:
    if len(args) != 1 or type(args[0]) not in (list, tuple):
        raise _refuse_args("builtins.set", args)
    return {checked_key(item) for item in args[0]}


def _call_slice(args: tuple[Any, ...], build: Builder) -> Any:
    if not 1 <= len(args) <= 3 or not all(item is None or type(item) is int for item in args):
        raise _refuse_args("builtins.slice", args)
    return slice(*args)


def _call_complex(args: tuple[Any, ...], build: Builder) -> Any:
    if len(args) != 2 or not all(type(item) in (int, float) for item in args):
        raise _refuse_args("builtins.complex", args)
    return complex(*args)


def _call_getattr(args: tuple[Any, ...], build: Builder) -> Any:
    """Allow what a true file needs, the four statistics of ``HistoryBuffer``, and nothing else."""
    if len(args) == 2 and args[0] == Symbol(_HISTORY) and type(args[1]) is str and args[1] in STATISTICS:
        return Symbol(f"{_HISTORY}.{args[1]}")
    raise _refuse_args("builtins.getattr", args)


def _call_encode(args: tuple[Any, ...], build: Builder) -> Any:
    if len(args) != 2 or type(args[0]) is not str or args[1] not in ("latin1", "latin-1"):
        raise _refuse_args("_codecs.encode", args)
    return args[0].encode("latin-1")


def _call_dtype(args: tuple[Any, ...], build: Builder) -> Any:
    code = args[0] if args else None
    if type(code) is str and len(args) in (1, 2, 3) and (code in _STRUCT or _OTHER_CODES.fullmatch(code)):
        return _DType(code)
    raise _refuse_args("numpy.dtype", args)


def _dtype_class(code: str) -> _Call:
    def call(args: tuple[Any, ...], build: Builder) -> Any:
        if args != ():
            raise _refuse_args("numpy.dtypes", args)
        return _DType(code)

    return call


def _call_reconstruct(args: tuple[Any, ...], build: Builder) -> Any:
    if len(args) != 3 or args[0] != Symbol("numpy.ndarray") or args[1] != (0,) or args[2] not in (b"b", "b"):
        raise _refuse_args("numpy's _reconstruct", args)
    return build.new_array()


def _call_scalar(args: tuple[Any, ...], build: Builder) -> Any:
    if (
        len(args) != 2
        or type(args[0]) is not _DType
        or type(args[1]) is not bytes
        or len(args[1]) != args[0].item_bytes
    ):
        raise _refuse_args("numpy's scalar", args)
    return build.scalar(args[0].text, args[1])


def _call_parameter(args: tuple[Any, ...], build: Builder) -> Any:
    """Return the data as a plain tensor: a state dict is copied into parameters, not made of them."""
    if len(args) not in (2, 3) or type(args[1]) is not bool or not _is_empty(args[2:]):
        raise _refuse_args("torch._utils._rebuild_parameter", args)
    data: Any = args[0]
    dtype = str(getattr(data, "dtype", "")).removeprefix("torch.")
    if not isinstance(data, build.tensor_types):
        raise _refuse_args("torch._utils._rebuild_parameter", args)
    _check_gradient("torch._utils._rebuild_parameter", dtype, args[1])
    return data


_NUMPY_DTYPES = {
    "Float64DType": "f8", "Float32DType": "f4", "Float16DType": "f2", "BoolDType": "b1",
    "Int8DType": "i1", "Int16DType": "i2", "Int32DType": "i4", "Int64DType": "i8",
    "UInt8DType": "u1", "UInt16DType": "u2", "UInt32DType": "u4", "UInt64DType": "u8",
}  # fmt: skip

_CALLS: dict[str, _Call] = {
    "collections.OrderedDict": _call_ordered_dict,
    "collections.Counter": _call_counter,
    "builtins.getattr": _call_getattr,
    "builtins.slice": _call_slice,
    "builtins.set": _call_set,
    "builtins.complex": _call_complex,
    "_codecs.encode": _call_encode,
    "torch._utils._rebuild_tensor": _call_tensor,
    "torch._utils._rebuild_tensor_v2": _call_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _call_tensor_v3,
    "torch._utils._rebuild_parameter": _call_parameter,
    "torch.Size": _call_size,
    "torch.device": _call_device,
    "mmengine.config.config.ConfigDict": _call_config_dict,
    "numpy.dtype": _call_dtype,
    "numpy.core.multiarray._reconstruct": _call_reconstruct,
    "numpy._core.multiarray._reconstruct": _call_reconstruct,
    "numpy.core.multiarray.scalar": _call_scalar,
    "numpy._core.multiarray.scalar": _call_scalar,
    **{f"numpy.dtypes.{name}": _dtype_class(code) for name, code in _NUMPY_DTYPES.items()},
}

ALLOWED: frozenset[str] = frozenset(
    {
        *_CALLS,
        _HISTORY,
        "numpy.ndarray",
        *(f"torch.{name}" for name in _STORAGES),
        *(f"torch.{name}" for name in ITEM_BYTES),
    }
)
"""Every name that a checkpoint may mention."""

_SYMBOLS = {name: Symbol(name) for name in ALLOWED}
_DTYPE_NAMES = frozenset(f"torch.{name}" for name in ITEM_BYTES)


def checked_key(value: Any) -> Any:
    """Return a dictionary key, if it is one of the kinds that cannot make hashing slow or unsafe.

    Hashing a tuple nested a million deep overflows the C stack, and chosen long integers all hash
    alike; checkpoints have text and small integers for keys.
    """
    if type(value) is str or (type(value) is int and -(2**63) <= value < 2**63) or type(value) is bool:
        return value
    raise UnsafeError(f"a dictionary has the key {_short(value)}; checkpoints have text or integers for keys")


def resolve(module: str, name: str, build: Builder) -> Any:
    # torch.save writes protocol 2, in which Python 3 names some modules as Python 2 did.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    symbol = _SYMBOLS.get(f"{module}.{name}")
    if symbol is None:
        name = visible(f"{module}.{name}")
        raise UnsafeError(f"it names {name}, which no checkpoint needs; loading it could run code")
    return build.symbol(symbol) if symbol.name in _DTYPE_NAMES else symbol


def call(function: Any, arguments: Any, build: Builder) -> Any:
    if type(arguments) is not tuple:
        raise UnsafeError(f"{_short(function)} is called with something other than a tuple")
    made_by = _CALLS.get(function.name) if type(function) is Symbol else None
    if made_by is None:
        raise UnsafeError(f"it calls {_short(function)}, which no checkpoint does")
    return made_by(arguments, build)


def new(kind: Any, arguments: Any, build: Builder) -> Any:
    if kind == Symbol(_HISTORY) and arguments == ():
        return build.new_history()
    raise UnsafeError(f"it makes an object of {_short(kind)} with {_kinds(arguments)}; no checkpoint does")


def set_state(target: Any, state: Any, build: Builder) -> None:
    if type(target) is OrderedDict:
        if type(state) is not dict or len(state) != 1 or "_metadata" not in state:
            raise UnsafeError("it alters an OrderedDict beyond its _metadata, which no checkpoint does")
        target._metadata = state["_metadata"]  # type: ignore[attr-defined]  # as torch does
    elif type(target) is _DType:
        if (
            type(state) is not tuple
            or len(state) not in (8, 9)
            or state[1] not in ("<", ">", "|", "=")
            or state[2:5] != (None, None, None)
        ):
            raise _refuse_args("the state of a numpy.dtype", state)
        target.order = "<" if state[1] == "=" else state[1]
    elif isinstance(target, build.array_types):
        _fill_array(target, state, build)
    elif isinstance(target, build.history_types):
        _fill_history(target, state, build)
    else:
        raise UnsafeError(f"it alters the state of {_short(target)}, which no checkpoint does")


def storage_of(identity: Any, num_parts: int) -> StorageInfo:
    if type(identity) is tuple and len(identity) == num_parts and identity[0] == "storage":
        _, kind, key, location, count = identity[:5]
        dtype = _STORAGES.get(kind.name.removeprefix("torch.")) if type(kind) is Symbol else None
        if (
            dtype is not None
            and all(part is None for part in identity[5:])
            and type(key) is str
            and _KEY.fullmatch(key)
            and type(location) is str
            and _LOCATION.fullmatch(location)
            and type(count) is int
            and 0 <= count < 2**48
        ):
            return StorageInfo(key=key, dtype=dtype, num_elements=count)
    raise UnsafeError(f"it refers to {_kinds(identity)} outside of the pickle; expected a tensor storage")


def _fill_array(target: Any, state: Any, build: Builder) -> None:
    if type(state) is not tuple or len(state) != 5:
        raise _refuse_args("the state of a numpy.ndarray", state)
    _, shape, dtype, fortran, data = state
    sizes = _sizes(shape)
    if sizes is None or type(dtype) is not _DType or type(fortran) is not bool or type(data) is not bytes:
        raise _refuse_args("the state of a numpy.ndarray", state)
    count = 1
    for size in sizes:
        count *= size
    if count * dtype.item_bytes != len(data):
        raise UnsafeError(f"a numpy.ndarray of shape {sizes} comes with {len(data)} bytes")
    build.fill_array(target, ArrayInfo(dtype=dtype.text, shape=sizes, fortran_order=fortran, data=data))


def _fill_history(target: Any, state: Any, build: Builder) -> None:
    if type(state) is not dict or not set(state) <= _HISTORY_STATE:
        raise _refuse_args("the state of a HistoryBuffer", (state,))
    methods = state.get("statistics_methods", {})
    if type(methods) is not dict or any(
        name not in STATISTICS or method != Symbol(f"{_HISTORY}.{name}") for name, method in methods.items()
    ):
        raise UnsafeError("it plants a statistics method in HistoryBuffer's class, where it would stay")
    log, count = state.get("_log_history"), state.get("_count_history")
    length = state.get("max_length")
    if not (isinstance(log, build.array_types) and isinstance(count, build.array_types)):
        raise _refuse_args("the state of a HistoryBuffer", (log, count))
    if type(length) is not int:
        raise _refuse_args("the state of a HistoryBuffer", (length,))
    build.fill_history(target, HistoryInfo(log=log, count=count, max_length=length))
