"""A gallery of hostile checkpoints. None may run anything, and each is named in the reason.

Every file would, if a full unpickle or a careless allow list loaded it, write a canary file. The
gallery is loaded three ways: by inspection, by loading, and, for those marked so, by a plain
``pickle.load`` first, to show that the trap is armed.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hostile import call, checkpoint_with, text

from mapsage_kaggle.checkpoints.allowed import UnsafeError
from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.checkpoints.unpickle import interpret
from mapsage_kaggle.errors import CheckpointError

HISTORY = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"


class Reduced:
    """Pickles as a call, the way most attacks are written."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


def body(value: object) -> bytes:
    """Return the opcodes of a value's pickle, without their first and last."""
    return pickle.dumps(value, 2)[2:-1]


def gallery(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Return the payloads by name, each with what its reason must name."""
    touch = f"open({str(canary)!r}, 'w').close()"
    shell = f"touch {canary}"
    python = text(touch)
    history = HISTORY
    arrays = {
        name: call("numpy._core.multiarray", "_reconstruct", b"cnumpy\nndarray\n", b"K\x00\x85", text("b"))
        for name in ("_log_history", "_count_history")
    }
    state = b"".join(text(name) + array for name, array in arrays.items()) + text("max_length") + b"K\x05"
    return {
        "os.system": (body(Reduced(os.system, shell)), "posix.system"),
        "os.system by name": (call("os", "system", text(shell)), "os.system"),
        "builtins.eval": (call("builtins", "eval", python), "builtins.eval"),
        "builtins.exec as Python 2": (call("__builtin__", "exec", python), "builtins.exec"),
        "builtins.open": (call("builtins", "open", text(str(canary)), text("w")), "builtins.open"),
        "subprocess.Popen": (body(Reduced(subprocess.Popen, ["touch", str(canary)])), "subprocess.Popen"),
        "importlib": (call("importlib", "import_module", text("antigravity")), "importlib.import_module"),
        "runpy": (call("runpy", "_run_code", python), "runpy._run_code"),
        "protocol 4": (text("os") + text("system") + b"\x93(" + text(shell) + b"tR", "os.system"),
        "INST": (b"(" + text(shell) + b"ios\nsystem\n", "os.system"),
        "OBJ": (b"(cos\nsystem\n" + text(shell) + b"o", "os.system"),
        "nested reduce": (
            call("collections", "OrderedDict", b"](" + call("os", "system", text(shell)) + b"e"),
            "os.system",
        ),
        "argument of an allowed call": (
            call("_codecs", "encode", call("os", "system", text(shell)), text("latin1")),
            "os.system",
        ),
        "reduce of a text": (text("os.system") + b"(" + text(shell) + b"tR", "it calls 'os.system'"),
        "reduce of a result": (
            call("torch", "Size", b"K\x01\x85") + b"(" + text(shell) + b"tR",
            "it calls tuple",
        ),
        "getattr of a module": (
            call("builtins", "getattr", b"cos\nsystem\n", text("__call__")),
            "os.system",
        ),
        "getattr of a class's bases": (
            call("builtins", "getattr", history, text("__subclasses__")),
            "getattr is called with (mmengine.logging.history_buffer.HistoryBuffer, '__subclasses__')",
        ),
        "getattr of a function's globals": (
            call(
                "builtins", "getattr", call("builtins", "getattr", history, text("mean")), text("__globals__")
            ),
            "HistoryBuffer.mean, '__globals__')",
        ),
        "getattr of a dictionary": (call("builtins", "getattr", b"}", text("get")), "(dict, 'get')"),
        "getattr with a default": (
            call("builtins", "getattr", history, text("mean"), b"N"),
            "builtins.getattr is called with",
        ),
        "a method registered in HistoryBuffer": (
            call("builtins", "getattr", history, text("register_statistics")),
            "'register_statistics')",
        ),
        "exec in HistoryBuffer's class state": (
            history
            + b")\x81}("
            + text("statistics_methods")
            + b"}"
            + text("mean")
            + b"c__builtin__\nexec\ns"
            + state
            + b"ub",
            "builtins.exec",
        ),
        "an allowed name in HistoryBuffer's class state": (
            history
            + b")\x81}("
            + text("statistics_methods")
            + b"}"
            + text("mean")
            + b"c__builtin__\ngetattr\ns"
            + state
            + b"ub",
            "plants a statistics method in HistoryBuffer's class",
        ),
        "BUILD on the class itself": (
            history + b"N}" + text("_statistics_methods") + b"}s\x86b",
            "alters the state of mmengine.logging.history_buffer.HistoryBuffer",
        ),
        "BUILD with slots on a history": (
            history + b")\x81N}" + text("mean") + b"K\x01s\x86b",
            "the state of a HistoryBuffer",
        ),
        "an unknown attribute of a history": (
            history + b")\x81}(" + text("mean") + b"K\x01" + state + b"ub",
            "the state of a HistoryBuffer",
        ),
        "BUILD on an OrderedDict": (
            b"ccollections\nOrderedDict\n)R}" + text("__class__") + b"K\x01sb",
            "alters an OrderedDict beyond its _metadata",
        ),
        "BUILD on a function": (
            b"c_codecs\nencode\n}" + text("x") + b"K\x01sb",
            "alters the state of _codecs.encode",
        ),
        "__setstate__ of a tensor": (
            b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__setstate__") + b"cos\nsystem\nsb",
            "os.system",
        ),
        "a history made with arguments": (
            history + text("x") + b"\x85\x81",
            "makes an object of mmengine.logging.history_buffer.HistoryBuffer",
        ),
        "NEWOBJ of another class": (
            b"ccollections\nOrderedDict\n)\x81",
            "makes an object of collections.OrderedDict",
        ),
        "NEWOBJ_EX": (b"ccollections\nOrderedDict\n)}\x92", "opcode 0x92"),
        "torch.load inside": (call("torch", "load", text(str(canary))), "torch.load"),
        "torch.hub": (call("torch.hub", "load", text("a/b")), "torch.hub.load"),
        "torch._utils._rebuild_wrapper_subclass": (
            call("torch._utils", "_rebuild_wrapper_subclass", python),
            "torch._utils._rebuild_wrapper_subclass",
        ),
        "torch._tensor._rebuild_from_type_v2": (
            call("torch._tensor", "_rebuild_from_type_v2", python),
            "torch._tensor._rebuild_from_type_v2",
        ),
        "torch.storage._load_from_bytes": (
            call("torch.storage", "_load_from_bytes", python),
            "torch.storage._load_from_bytes",
        ),
        "torch.utils.collect_env.run": (
            call("torch.utils.collect_env", "run", text(shell)),
            "torch.utils.collect_env.run",
        ),
        "torch.jit.unsupported_tensor_ops.execWrapper": (
            call("torch.jit.unsupported_tensor_ops", "execWrapper", python),
            "torch.jit.unsupported_tensor_ops.execWrapper",
        ),
        "numpy's runstring": (
            call("numpy.testing._private.utils", "runstring", python, b"}"),
            "numpy.testing._private.utils.runstring",
        ),
        "numpy object array": (
            call("numpy", "dtype", text("O8"), b"\x89\x88"),
            "numpy.dtype is called with ('O8'",
        ),
        "numpy of another class": (
            call(
                "numpy._core.multiarray",
                "_reconstruct",
                b"ccollections\nOrderedDict\n",
                b"K\x00\x85",
                text("b"),
            ),
            "numpy's _reconstruct is called with (collections.OrderedDict",
        ),
        "codecs of another kind": (
            call("_codecs", "encode", text("x"), text("zlib")),
            "_codecs.encode is called with",
        ),
        "mmengine's config": (
            call("mmengine.config.config", "Config.fromstring", python, text(".py")),
            "mmengine.config.config.Config.fromstring",
        ),
        "mmengine's registry": (
            call("mmengine.registry", "build_from_cfg", b"}"),
            "mmengine.registry.build_from_cfg",
        ),
        "backward hooks": (
            b"ctorch._utils\n_rebuild_tensor_v2\n(("
            + text("storage")
            + b"ctorch\nFloatStorage\n"
            + text("0")
            + text("cpu")
            + b"K\x02tQK\x00K\x02\x85K\x01\x85\x89}"
            + text("hook")
            + b"K\x01stR",
            "_rebuild_tensor_v2 is called with",
        ),
        "a persistent id of another kind": (
            b"(" + text("module") + b"cos\nsystem\n" + text("0") + text("cpu") + b"K\x02tQ",
            "os.system",
        ),
        "a storage outside of the file": (
            b"("
            + text("storage")
            + b"ctorch\nFloatStorage\n"
            + text("../../etc/passwd")
            + text("cpu")
            + b"K\x02tQ",
            "outside of the pickle; expected a tensor storage",
        ),
        "a dotted name": (
            call("collections", "OrderedDict.__init__.__globals__"),
            "OrderedDict.__init__.__globals__",
        ),
        "extension registry": (b"\x82\x01", "opcode 0x82"),
        "out-of-band buffer": (b"\x97", "opcode 0x97"),
        "text persistent id": (b"P0\n", "opcode 0x50"),
    }


NAMES = sorted(gallery(Path("canary")))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Return a path that must never come into being."""
    return tmp_path / "canary"


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_pickle_is_named_and_does_not_run(name: str, canary: Path, tmp_path: Path) -> None:
    payload, named = gallery(canary)[name]
    path = checkpoint_with(payload, tmp_path / "iter_8.pth")
    loaded_before = set(sys.modules)
    for full in (False, True):
        found = inspect(path, full=full)
        assert found.verdict == "rejected"
        assert named in found.problems[0]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert named in str(caught.value)
    assert not canary.exists()
    assert {"antigravity", "runpy", "torch.utils.collect_env"} & (set(sys.modules) - loaded_before) == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_legacy_file_is_named_and_does_not_run(name: str, canary: Path, tmp_path: Path) -> None:
    payload, named = gallery(canary)[name]
    payload = payload.replace(b"K\x02tQ", b"K\x02NtQ")  # there a storage is named by six parts
    from mapsage_kaggle.checkpoints.legacy import MAGIC

    header = pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    path = tmp_path / "old.pth"
    path.write_bytes(MAGIC + header + b"\x80\x02" + payload + b"." + pickle.dumps([], 2))
    assert named in inspect(path).problems[0]
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "protocol 4", "INST", "OBJ", "nested reduce"])
def test_the_trap_is_armed(name: str, canary: Path) -> None:
    """A full unpickle of the same bytes does run them: the gallery proves something."""
    payload, _ = gallery(canary)[name]
    with contextlib.suppress(TypeError):  # what comes of the trap may be of no use to its caller
        pickle.loads(b"\x80\x02" + payload + b".")
    assert canary.exists()


@pytest.mark.parametrize("bare", [True, False])
def test_a_bare_hostile_pickle_is_named(bare: bool, canary: Path, tmp_path: Path) -> None:
    path = tmp_path / "iter_8.pth"
    path.write_bytes(pickle.dumps(Reduced(os.system, f"touch {canary}"), 2 if bare else 4))
    assert ("posix.system" if bare else "pickle protocol 4") in inspect(path).problems[0]
    assert not canary.exists()


def test_the_classes_that_files_name_are_as_before_after_loading_the_gallery(
    canary: Path, tmp_path: Path
) -> None:
    from collections import OrderedDict

    from mmengine.logging import HistoryBuffer

    HistoryBuffer()
    before = {kind: dict(vars(kind)) for kind in (HistoryBuffer, OrderedDict)}
    methods = dict(HistoryBuffer._statistics_methods)
    for name, (payload, _) in gallery(canary).items():
        path = checkpoint_with(payload, tmp_path / f"{len(name)}.pth")
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    assert {kind: dict(vars(kind)) for kind in (HistoryBuffer, OrderedDict)} == before
    assert methods == HistoryBuffer._statistics_methods
    assert builtins.exec not in methods.values()


# Files that would exhaust memory or time


def deep(count: int) -> bytes:
    return b"]" * count + b"a" * (count - 1)


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (deep(1000), "nested more than 64 deep"),
        (deep(1_000_000), "it would fill the memory"),
        (b")" + b"\x85" * 1_000_000, "it would fill the memory"),
        (b"}" + b")" + b"\x85" * 100_000 + b"K\x01s", "a dictionary has the key tuple"),
        (b"}G" + b"\x7f" * 8 + b"K\x01s", "a dictionary has the key"),
        (b"}\x8a\x09" + b"\xff" * 8 + b"\x00K\x01s", "a dictionary has the key"),
        (b"X\xff\xff\xff\x7fabc", "a text runs beyond the end"),
        (b"(" * 100_000, "malformed"),
        (b"h\x63", "malformed"),
        (b"t" * 10, "malformed"),
        (b"\xff", "opcode 0xff"),
        (b"", "malformed"),
        (b"K\x01K\x02", "malformed"),
    ],
    ids=[
        "lists",
        "million-lists",
        "million-tuples",
        "hash",
        "float-key",
        "huge-key",
        "text",
        "marks",
        "memo",
        "stack",
        "ff",
        "none",
        "odd",
    ],
)
def test_a_pickle_that_would_exhaust_the_machine_is_refused(
    payload: bytes, named: str, tmp_path: Path
) -> None:
    path = checkpoint_with(payload, tmp_path / "iter_8.pth")
    found = inspect(path)
    assert found.verdict == "rejected"
    assert named in found.problems[0]


def test_a_billion_laughs_stay_small(tmp_path: Path) -> None:
    laughs = b"]q\x00" + b"".join(
        b"](" + bytes([0x68, index]) * 10 + b"e" + bytes([0x71, index + 1]) for index in range(40)
    )
    path = checkpoint_with(b"(" + laughs + b"t", tmp_path / "iter_8.pth")
    assert inspect(path).verdict == "weights-only"


def test_a_list_that_contains_itself_ends(tmp_path: Path) -> None:
    path = checkpoint_with(b"]q\x00h\x00a", tmp_path / "iter_8.pth")
    assert inspect(path).verdict == "weights-only"


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0")
        + text("cpu") + b"K\x02tQK\x01K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip
    path = checkpoint_with(tensor, tmp_path / "iter_8.pth")
    assert "a tensor of shape (2,) reaches beyond its storage 0" in inspect(path).problems[0]


def test_a_tensor_that_claims_terabytes_takes_no_memory(tmp_path: Path) -> None:
    """All steps are 0, so that two numbers look like 2**40 of them; nothing may unfold it."""
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0")
        + text("cpu") + b"K\x02tQK\x00\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85K\x00\x85\x89"
        + b"ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip
    path = checkpoint_with(tensor, tmp_path / "iter_8.pth")
    found = inspect(path)
    assert found.verdict == "rejected"
    assert "repeats its elements" in found.problems[0]


def test_allowed_names_are_few() -> None:
    """Whoever adds a name here must ask what a file could do with it."""
    from mapsage_kaggle.checkpoints.allowed import ALLOWED

    callables = {name for name in ALLOWED if not name.startswith(("torch.", "numpy.dtypes."))}
    assert callables == {
        "_codecs.encode",
        "builtins.complex",
        "builtins.getattr",
        "builtins.set",
        "builtins.slice",
        "collections.Counter",
        "collections.OrderedDict",
        "mmengine.config.config.ConfigDict",
        "mmengine.logging.history_buffer.HistoryBuffer",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "numpy.ndarray",
    }


def test_no_code_path_of_the_room_unpickles() -> None:
    """Neither pickle nor torch's loaders are reached from here, whatever a file says."""
    import ast

    room = Path(__file__).resolve().parents[2] / "mapsage_kaggle" / "checkpoints"
    for source in sorted(room.glob("*.py")):
        tree = ast.parse(source.read_text())
        imported = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        } | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"pickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}, (
            source
        )
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & {"torch.load", "eval", "exec", "__import__", "compile", "np.load"}, source


@pytest.mark.parametrize("data", [b".", b"N.N", b"\x80\x09.", b"(l.", b"\x80"])
def test_malformed_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(UnsafeError):
        interpret(data)
