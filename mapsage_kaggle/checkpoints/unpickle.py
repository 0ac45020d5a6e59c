"""Reads the pickle inside a checkpoint without running it: data in, data out, nothing called.

The machine below knows a fixed set of opcodes, and ``allowed`` a fixed set of names. A name that a
file mentions is never imported: it is looked up in a table there, whose functions build plain
values and check what they are given. Nothing that a file contains can therefore choose code to run,
and no class or function can have its state altered: ``BUILD`` is understood for four kinds of
values, all of them made here.

Stock loaders differ in this. ``pickle`` imports and calls whatever is named; torch's weights-only
loader has to be told to allow ``builtins.getattr`` and ``HistoryBuffer`` for mmengine's files, and a
file can then reach any attribute, and write into the class (``HistoryBuffer._statistics_methods``).
"""

from __future__ import annotations

import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from mapsage_kaggle.checkpoints.allowed import (
    Builder,
    Describe,
    StorageInfo,
    UnsafeError,
    call,
    checked_key,
    cost_of,
    new,
    resolve,
    set_state,
    storage_of,
)
from mapsage_kaggle.checkpoints.archive import DamagedError
from mapsage_kaggle.outside import visible

MAX_PICKLE_BYTES = 256 * 2**20
"""A true one of 40,000 iterations has about 20 MB, one of 160,000 with 40 scalars 134 MB."""

_BASE_BYTES = 56 * 2**20
_BYTES_PER_BYTE = 2.75
"""What may be made of a pickle, so that all of reading it stays below 64 MB and four times its size."""
_MAX_NAME_BYTES = 200


ZIP_PARTS, LEGACY_PARTS = 5, 6
"""Of what names a storage, in a zip file and in the old format."""


def interpret(data: bytes, build: Builder | None = None, num_parts: int = ZIP_PARTS) -> Any:
    """Return what a pickle describes, as plain containers and what ``build`` makes.

    Args:
        data: The pickle. Bytes after its end are refused.
        build: Makes tensors, arrays and histories; descriptions of them where it is None.
        num_parts: Of what names a storage.

    Raises:
        UnsafeError: It names something that is not in ``ALLOWED``, uses an allowed name in a way that
            no checkpoint does, or is malformed. The reason says what and where.
    """
    machine = _run(data, 0, build, num_parts)
    if machine.position != len(data):
        raise UnsafeError(f"{len(data) - machine.position} bytes follow the end of the pickle")
    return machine.result


def interpret_one(data: bytes, start: int = 0) -> tuple[Any, int, dict[str, StorageInfo]]:
    """Return what the pickle at ``start`` of a file in the old format describes.

    Returns:
        That, where it ends, and the storages that it refers to by key, those of no tensor included.

    Raises:
        UnsafeError: As :func:`interpret`.
    """
    machine = _run(data, start, None, LEGACY_PARTS)
    return machine.result, machine.position, machine.storages


def _run(data: bytes, start: int, build: Builder | None, num_parts: int) -> _Machine:
    machine = _Machine(data, start, build or Describe(), num_parts)
    try:
        machine.run()
    except DamagedError:
        raise
    except UnsafeError as error:
        raise UnsafeError(f"{error} (byte {machine.position} of the pickle)") from None
    except (IndexError, KeyError, struct.error, UnicodeError, TypeError, ValueError, OverflowError) as error:
        raise UnsafeError(
            f"the pickle is malformed at byte {machine.position} "
            f"({type(error).__name__}: {visible(str(error))})"
        ) from error
    return machine


class _Machine:
    """The pickle machine: a stack, marks and a memo, with a bound on their memory.

    Each step is paid for by what it makes, in bytes as CPython needs them, rounded up. A step takes
    time in proportion to what it makes or takes from the stack, so that time is bounded as well.
    """

    def __init__(self, data: bytes, start: int, build: Builder, num_parts: int) -> None:
        self.data = data
        self.view = memoryview(data)
        self.position = start
        self.build = build
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageInfo] = {}
        self.num_parts = num_parts
        self.result: Any = None
        self.left_bytes = _BASE_BYTES + int(_BYTES_PER_BYTE * (len(data) - start))

    def run(self) -> None:
        data = self.data
        while True:
            code = data[self.position]
            self.position += 1
            self.pay(_SLOT_BYTES)
            step = _STEPS.get(code)
            if step is not None:
                step(self)
            elif code == _STOP:
                if len(self.stack) != 1 or self.marks:
                    raise UnsafeError("the pickle ends with an untidy stack")
                self.result = self.stack[0]
                return
            else:
                raise UnsafeError(f"it has the opcode 0x{code:02x}, which torch.save never writes")

    def pay(self, size_bytes: int) -> None:
        """Take what a step makes from what may be made.

        Raises:
            UnsafeError: Nothing is left.
        """
        self.left_bytes -= size_bytes
        if self.left_bytes < 0:
            raise UnsafeError("it would fill the memory with more than a checkpoint of its size can hold")

    def take(self, size: int) -> memoryview:
        start = self.position
        if start + size > len(self.data):
            raise UnsafeError("a text runs beyond the end")
        self.position += size
        return self.view[start : self.position]

    def number(self, layout: struct.Struct) -> Any:
        (value,) = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return value

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + _MAX_NAME_BYTES)
        if end < 0:
            raise UnsafeError(f"it names something of more than {_MAX_NAME_BYTES} bytes")
        text = self.data[self.position : end].decode("utf-8")
        self.position = end + 1
        return text

    def since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        self.left_bytes += _LIST_BYTES + _SLOT_BYTES * len(items)
        return items


_SLOT_BYTES = 10
_MEMO_BYTES = 130
_PAIR_BYTES = 80
_LIST_BYTES = 80
_DICT_BYTES = 200
_NUMBER_BYTES = 32

_Step = Callable[[_Machine], None]
_STOP = 0x2E
_U1, _U2, _U4, _I4, _F8 = map(struct.Struct, ("<B", "<H", "<I", "<i", ">d"))


def _push(value: Any) -> _Step:
    return lambda machine: machine.stack.append(value)


def _push_new(kind: Callable[[], Any], size_bytes: int) -> _Step:
    def step(machine: _Machine) -> None:
        machine.pay(size_bytes)
        machine.stack.append(kind())

    return step


def _push_number(layout: struct.Struct, size_bytes: int = _NUMBER_BYTES) -> _Step:
    def step(machine: _Machine) -> None:
        machine.pay(size_bytes)
        machine.stack.append(machine.number(layout))

    return step


def _push_text(layout: struct.Struct, encoding: str, errors: str = "strict") -> _Step:
    def step(machine: _Machine) -> None:
        text = str(machine.take(machine.number(layout)), encoding, errors)
        machine.pay(sys.getsizeof(text))
        machine.stack.append(text)

    return step


def _remember(layout: struct.Struct) -> _Step:
    def step(machine: _Machine) -> None:
        machine.pay(_MEMO_BYTES)
        machine.memo[machine.number(layout)] = machine.stack[-1]

    return step


def _recall(layout: struct.Struct) -> _Step:
    return lambda machine: machine.stack.append(machine.memo[machine.number(layout)])


def _make_tuple(size: int) -> _Step:
    def step(machine: _Machine) -> None:
        items = tuple(machine.stack[-size:])
        if len(items) != size:
            raise UnsafeError("the pickle takes more from its stack than is there")
        machine.pay(_LIST_BYTES)
        machine.stack[-size:] = [items]

    return step


def _proto(machine: _Machine) -> None:
    if (version := machine.number(_U1)) != 2:
        raise UnsafeError(f"it has pickle protocol {version}, and torch.save writes 2")


def _mark(machine: _Machine) -> None:
    machine.pay(_LIST_BYTES)
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple(machine: _Machine) -> None:
    items = tuple(machine.since_mark())
    machine.pay(_LIST_BYTES + _SLOT_BYTES * len(items))
    machine.stack.append(items)


def _set_item(machine: _Machine) -> None:
    machine.pay(_PAIR_BYTES)
    value = machine.stack.pop()
    key = checked_key(machine.stack.pop())
    _is_mapping(machine.stack[-1])[key] = value


def _set_items(machine: _Machine) -> None:
    pairs = machine.since_mark()
    machine.pay(_PAIR_BYTES * len(pairs) // 2)
    target = _is_mapping(machine.stack[-1])
    for index in range(0, len(pairs), 2):
        target[checked_key(pairs[index])] = pairs[index + 1]


def _append(machine: _Machine) -> None:
    machine.pay(_SLOT_BYTES)
    value = machine.stack.pop()
    _is_list(machine.stack[-1]).append(value)


def _append_all(machine: _Machine) -> None:
    values = machine.since_mark()
    machine.pay(_SLOT_BYTES * len(values))
    _is_list(machine.stack[-1]).extend(values)


def _long(machine: _Machine) -> None:
    raw = machine.take(machine.number(_U1))
    machine.pay(_NUMBER_BYTES + len(raw))
    machine.stack.append(int.from_bytes(raw, "little", signed=True))


def _global(machine: _Machine) -> None:
    start = machine.position
    module, name = machine.line(), machine.line()
    end, machine.position = machine.position, start
    machine.stack.append(resolve(module, name, machine.build))
    machine.position = end


def _inst(machine: _Machine) -> None:
    """Refuse it: it names a class and calls it."""
    resolve(machine.line(), machine.line(), machine.build)
    raise UnsafeError("it has the opcode INST, which torch.save never writes")


def _stack_global(machine: _Machine) -> None:
    """Refuse it, as torch does, with what it names."""
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is str and type(module) is str:
        resolve(module, name, machine.build)
    raise UnsafeError("it has the opcode STACK_GLOBAL, which torch.save never writes")


def _reduce(machine: _Machine) -> None:
    arguments = machine.stack.pop()
    machine.pay(cost_of(arguments))
    machine.stack[-1] = call(machine.stack[-1], arguments, machine.build)


def _new_object(machine: _Machine) -> None:
    arguments = machine.stack.pop()
    machine.pay(cost_of(()))
    machine.stack[-1] = new(machine.stack[-1], arguments, machine.build)


def _build(machine: _Machine) -> None:
    state = machine.stack.pop()
    machine.pay(cost_of(state))
    set_state(machine.stack[-1], state, machine.build)


def _persistent_id(machine: _Machine) -> None:
    machine.pay(cost_of(()))
    storage = storage_of(machine.stack[-1], machine.num_parts)
    known = machine.storages.setdefault(storage.key, storage)
    if known != storage:
        raise UnsafeError(f"its storage {storage.key} is described in two ways")
    machine.stack[-1] = known


def _is_mapping(value: Any) -> Any:
    if type(value) is dict or type(value) is OrderedDict:
        return value
    raise UnsafeError(f"an item is set in a {type(value).__name__}, which no checkpoint does")


def _is_list(value: Any) -> Any:
    if type(value) is list:
        return value
    raise UnsafeError(f"an item is appended to a {type(value).__name__}, which no checkpoint does")


_STEPS: dict[int, _Step] = {
    0x71: _remember(_U1),  # BINPUT
    0x72: _remember(_U4),  # LONG_BINPUT
    0x68: _recall(_U1),  # BINGET
    0x6A: _recall(_U4),  # LONG_BINGET
    0x4B: _push_number(_U1, 0),  # BININT1
    0x4D: _push_number(_U2),  # BININT2
    0x4A: _push_number(_I4),  # BININT
    0x47: _push_number(_F8),  # BINFLOAT
    0x8A: _long,  # LONG1
    0x58: _push_text(_U4, "utf-8", "surrogatepass"),  # BINUNICODE
    0x55: _push_text(_U1, "ascii"),  # SHORT_BINSTRING
    0x4E: _push(None),  # NONE
    0x88: _push(True),  # NEWTRUE
    0x89: _push(False),  # NEWFALSE
    0x29: _push(()),  # EMPTY_TUPLE
    0x5D: _push_new(list, _LIST_BYTES),  # EMPTY_LIST
    0x7D: _push_new(dict, _DICT_BYTES),  # EMPTY_DICT
    0x8F: _push_new(set, _DICT_BYTES),  # EMPTY_SET
    0x28: _mark,  # MARK
    0x74: _tuple,  # TUPLE
    0x85: _make_tuple(1),  # TUPLE1
    0x86: _make_tuple(2),  # TUPLE2
    0x87: _make_tuple(3),  # TUPLE3
    0x73: _set_item,  # SETITEM
    0x75: _set_items,  # SETITEMS
    0x61: _append,  # APPEND
    0x65: _append_all,  # APPENDS
    0x63: _global,  # GLOBAL
    0x93: _stack_global,  # STACK_GLOBAL
    0x69: _inst,  # INST
    0x52: _reduce,  # REDUCE
    0x81: _new_object,  # NEWOBJ
    0x62: _build,  # BUILD
    0x51: _persistent_id,  # BINPERSID
    0x80: _proto,  # PROTO
}
