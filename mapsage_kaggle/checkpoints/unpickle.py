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
    new,
    resolve,
    set_state,
    storage_of,
)

MAX_PICKLE_BYTES = 256 * 2**20
"""A true one of 40,000 iterations has about 20 MB; the limit keeps a planted one from filling the memory."""


def interpret(data: bytes, build: Builder | None = None) -> Any:
    """Return what a pickle describes, as plain containers and what ``build`` makes.

    Args:
        data: The pickle. Bytes after its end are refused.
        build: Makes tensors, arrays and histories; descriptions of them where it is None.

    Raises:
        UnsafeError: It names something that is not in ``ALLOWED``, uses an allowed name in a way that
            no checkpoint does, or is malformed. The reason says what and where.
    """
    value, end = interpret_one(data, 0, build)
    if end != len(data):
        raise UnsafeError(f"{len(data) - end} bytes follow the end of the pickle")
    return value


def interpret_one(data: bytes, start: int = 0, build: Builder | None = None) -> tuple[Any, int]:
    """Return what the pickle at ``start`` describes, and where it ends.

    Raises:
        UnsafeError: As :func:`interpret`.
    """
    machine = _Machine(data, start, build or Describe())
    try:
        return machine.run(), machine.position
    except UnsafeError as error:
        raise UnsafeError(f"{error} (byte {machine.position} of the pickle)") from None
    except (IndexError, KeyError, struct.error, UnicodeError, TypeError, ValueError, OverflowError) as error:
        raise UnsafeError(
            f"the pickle is malformed at byte {machine.position} ({type(error).__name__}: {error})"
        ) from error


def storages_named_in(data: bytes) -> dict[str, StorageInfo]:
    """Return the storages that a pickle refers to, by key, those of no tensor included.

    Raises:
        UnsafeError: As :func:`interpret`.
    """
    machine = _Machine(data, 0, Describe())
    machine.run()
    return machine.storages


class _Machine:
    """The pickle machine: a stack, marks and a memo."""

    def __init__(self, data: bytes, start: int, build: Builder) -> None:
        self.data = data
        self.position = start
        self.build = build
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageInfo] = {}

    def run(self) -> Any:
        """Run to the STOP; return what it leaves."""
        data = self.data
        while True:
            code = data[self.position]
            self.position += 1
            step = _STEPS.get(code)
            if step is not None:
                step(self)
            elif code == _STOP:
                if len(self.stack) != 1 or self.marks:
                    raise UnsafeError("the pickle ends with an untidy stack")
                return self.stack[0]
            else:
                raise UnsafeError(f"it has the opcode 0x{code:02x}, which torch.save never writes")

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        start = self.position
        if start + size > len(self.data):
            raise UnsafeError("a text runs beyond the end")
        self.position += size
        return self.data[start : self.position]

    def number(self, layout: struct.Struct) -> Any:
        """Return the number that comes next."""
        (value,) = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return value

    def line(self) -> str:
        """Return the rest of the line."""
        end = self.data.index(b"\n", self.position)
        text = self.data[self.position : end].decode("utf-8")
        self.position = end + 1
        return text

    def since_mark(self) -> list[Any]:
        """Return what has been pushed since the last mark, and forget the mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items


_Step = Callable[[_Machine], None]
_STOP = 0x2E
_U1, _U2, _U4, _I4, _F8 = map(struct.Struct, ("<B", "<H", "<I", "<i", ">d"))


def _push(value: Any) -> _Step:
    return lambda machine: machine.stack.append(value)


def _push_new(kind: Callable[[], Any]) -> _Step:
    return lambda machine: machine.stack.append(kind())


def _push_number(layout: struct.Struct) -> _Step:
    return lambda machine: machine.stack.append(machine.number(layout))


def _push_text(layout: struct.Struct, *how: str) -> _Step:
    def step(machine: _Machine) -> None:
        raw = machine.take(machine.number(layout))
        machine.stack.append(raw.decode(*how) if how else raw)

    return step


def _remember(layout: struct.Struct) -> _Step:
    def step(machine: _Machine) -> None:
        machine.memo[machine.number(layout)] = machine.stack[-1]

    return step


def _recall(layout: struct.Struct) -> _Step:
    return lambda machine: machine.stack.append(machine.memo[machine.number(layout)])


def _make_tuple(size: int) -> _Step:
    def step(machine: _Machine) -> None:
        items = tuple(machine.stack[-size:])
        if len(items) != size:
            raise UnsafeError("the pickle takes more from its stack than is there")
        machine.stack[-size:] = [items]

    return step


def _proto(machine: _Machine) -> None:
    if (version := machine.number(_U1)) > 5:
        raise UnsafeError(f"it has pickle protocol {version}")


def _frame(machine: _Machine) -> None:
    machine.position += 8


def _mark(machine: _Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple(machine: _Machine) -> None:
    items = tuple(machine.since_mark())
    machine.stack.append(items)


def _set_item(machine: _Machine) -> None:
    value = machine.stack.pop()
    key = checked_key(machine.stack.pop())
    _is_mapping(machine.stack[-1])[key] = value


def _set_items(machine: _Machine) -> None:
    pairs = machine.since_mark()
    target = _is_mapping(machine.stack[-1])
    for index in range(0, len(pairs), 2):
        target[checked_key(pairs[index])] = pairs[index + 1]


def _append(machine: _Machine) -> None:
    value = machine.stack.pop()
    _is_list(machine.stack[-1]).append(value)


def _append_all(machine: _Machine) -> None:
    values = machine.since_mark()
    _is_list(machine.stack[-1]).extend(values)


def _add_items(machine: _Machine) -> None:
    values = machine.since_mark()
    if type(machine.stack[-1]) is not set:
        raise UnsafeError("items are added to something that is no set")
    machine.stack[-1].update(checked_key(value) for value in values)


def _long(machine: _Machine) -> None:
    raw = machine.take(machine.number(_U1))
    machine.stack.append(int.from_bytes(raw, "little", signed=True))


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _duplicate(machine: _Machine) -> None:
    machine.stack.append(machine.stack[-1])


def _pop(machine: _Machine) -> None:
    machine.stack.pop()


def _global(machine: _Machine) -> None:
    start = machine.position
    module, name = machine.line(), machine.line()
    end, machine.position = machine.position, start
    machine.stack.append(resolve(module, name, machine.build))
    machine.position = end


def _stack_global(machine: _Machine) -> None:
    name = machine.stack.pop()
    module = machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise UnsafeError("a global is named by something other than text")
    machine.stack.append(resolve(module, name, machine.build))


def _inst(machine: _Machine) -> None:
    """Refuse it: it names a class and calls it."""
    resolve(machine.line(), machine.line(), machine.build)
    raise UnsafeError("it has the opcode INST, which torch.save never writes")


def _reduce(machine: _Machine) -> None:
    arguments = machine.stack.pop()
    machine.stack[-1] = call(machine.stack[-1], arguments, machine.build)


def _new_object(machine: _Machine) -> None:
    arguments = machine.stack.pop()
    machine.stack[-1] = new(machine.stack[-1], arguments, machine.build)


def _build(machine: _Machine) -> None:
    state = machine.stack.pop()
    set_state(machine.stack[-1], state, machine.build)


def _persistent_id(machine: _Machine) -> None:
    storage = storage_of(machine.stack[-1])
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
    0x94: _memoize,  # MEMOIZE
    0x68: _recall(_U1),  # BINGET
    0x6A: _recall(_U4),  # LONG_BINGET
    0x4B: _push_number(_U1),  # BININT1
    0x4D: _push_number(_U2),  # BININT2
    0x4A: _push_number(_I4),  # BININT
    0x47: _push_number(_F8),  # BINFLOAT
    0x8A: _long,  # LONG1
    0x58: _push_text(_U4, "utf-8", "surrogatepass"),  # BINUNICODE
    0x8C: _push_text(_U1, "utf-8", "surrogatepass"),  # SHORT_BINUNICODE
    0x54: _push_text(_U4, "ascii"),  # BINSTRING
    0x55: _push_text(_U1, "ascii"),  # SHORT_BINSTRING
    0x42: _push_text(_U4),  # BINBYTES
    0x43: _push_text(_U1),  # SHORT_BINBYTES
    0x4E: _push(None),  # NONE
    0x88: _push(True),  # NEWTRUE
    0x89: _push(False),  # NEWFALSE
    0x29: _push(()),  # EMPTY_TUPLE
    0x5D: _push_new(list),  # EMPTY_LIST
    0x7D: _push_new(dict),  # EMPTY_DICT
    0x8F: _push_new(set),  # EMPTY_SET
    0x28: _mark,  # MARK
    0x74: _tuple,  # TUPLE
    0x85: _make_tuple(1),  # TUPLE1
    0x86: _make_tuple(2),  # TUPLE2
    0x87: _make_tuple(3),  # TUPLE3
    0x73: _set_item,  # SETITEM
    0x75: _set_items,  # SETITEMS
    0x61: _append,  # APPEND
    0x65: _append_all,  # APPENDS
    0x90: _add_items,  # ADDITEMS
    0x63: _global,  # GLOBAL
    0x93: _stack_global,  # STACK_GLOBAL
    0x69: _inst,  # INST
    0x52: _reduce,  # REDUCE
    0x81: _new_object,  # NEWOBJ
    0x62: _build,  # BUILD
    0x51: _persistent_id,  # BINPERSID
    0x32: _duplicate,  # DUP
    0x30: _pop,  # POP
    0x80: _proto,  # PROTO
    0x95: _frame,  # FRAME
}
