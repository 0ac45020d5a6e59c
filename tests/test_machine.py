from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from support.machines import GOOD, PATHS

from mapsage_kaggle import machine as module
from mapsage_kaggle.checks import Check, preflight, require, to_json
from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.errors import EXIT_MACHINE, MachineError
from mapsage_kaggle.machine import (
    STACK,
    Gpu,
    GpuGauge,
    GpuLoad,
    ask_driver,
    ask_torch,
    attached,
    has_kernels_for,
    installed_stack,
    keep_freed_memory,
    parse_driver,
    parse_load,
    return_freed_memory,
    run_type,
    survey,
    write_problem,
)
from mapsage_kaggle.paths import KagglePaths, on_kaggle
from mapsage_kaggle.processes import oom_kills

ROOT = Path(__file__).resolve().parents[1]
# What torch 2.10 on Kaggle was built for.
ARCHS = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def judged(name: str, **changes: Any) -> Check:
    """Return one check of a good machine with something changed."""
    checks = preflight(PATHS, dataclasses.replace(GOOD, **changes))
    return next(check for check in checks if check.name == name)


# --- where it runs ----------------------------------------------------------------------------


def test_kaggle_is_told_from_colab_although_it_sets_colabs_variables() -> None:
    assert on_kaggle({"KAGGLE_KERNEL_RUN_TYPE": "Batch", "COLAB_GPU": "1"})
    assert not on_kaggle({"COLAB_GPU": "1"})


def test_a_stand_in_for_kaggles_folders_is_not_kaggle() -> None:
    assert not on_kaggle({"KAGGLE_KERNEL_RUN_TYPE": "Batch", "MAPSAGE_KAGGLE_ROOT": "/tmp/kaggle"})


@pytest.mark.parametrize(
    ("environ", "in_kernel", "expected"),
    [
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, True, "batch"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, True, "interactive"),
        # Kaggle's batch runs set Colab's variables: Kaggle is asked first.
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch", "COLAB_GPU": "1"}, True, "batch"),
        ({}, False, "batch"),
        ({"JPY_SESSION_NAME": "train.ipynb"}, False, "batch"),
        ({"JPY_SESSION_NAME": "train.ipynb"}, True, "interactive"),
        ({"COLAB_RELEASE_TAG": "1"}, True, "interactive"),
        # A kernel without a front end: papermill's.
        ({}, True, "batch"),
        ({"JPY_SESSION_NAME": "outer.ipynb", "JPY_PARENT_PID": "no number"}, True, "interactive"),
    ],
)
def test_a_run_is_interactive_only_where_somebody_can_press_a_button(
    environ: dict[str, str], in_kernel: bool, expected: str
) -> None:
    assert run_type(environ, in_kernel=in_kernel) == expected


def test_a_kernel_is_known_by_what_it_has_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel.kernelapp", raising=False)
    assert run_type({"JPY_SESSION_NAME": "train.ipynb"}) == "batch"
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", module)
    assert run_type({"JPY_SESSION_NAME": "train.ipynb"}) == "interactive"


def test_a_kernel_whose_parent_is_papermill_is_a_batch_run() -> None:
    """A notebook that calls papermill hands its own session's name down."""
    command = [sys.executable, "-u", "-c", "print(); input()", "papermill"]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        parent.stdout.readline()  # a process has its command line only once it runs
        environ = {"JPY_SESSION_NAME": "outer.ipynb", "JPY_PARENT_PID": str(parent.pid)}
        assert run_type(environ, in_kernel=True) == "batch"
    finally:
        parent.communicate(b"\n")


def test_a_notebook_that_papermill_really_runs_is_a_batch_run(tmp_path: Path) -> None:
    import nbformat

    source, target = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from mapsage_kaggle.machine import run_type\nprint(run_type())"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(notebook, source)
    names = ("KAGGLE_KERNEL_RUN_TYPE", "JPY_SESSION_NAME", "JPY_PARENT_PID")
    environ = {name: value for name, value in os.environ.items() if name not in names}
    environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    # Started inside a notebook's terminal, as a `!papermill` cell is.
    environ["JPY_SESSION_NAME"] = "outer.ipynb"
    command = [sys.executable, "-m", "papermill", "-k", "python3", str(source), str(target)]
    subprocess.run(command, check=True, env=environ, capture_output=True)

    document = json.loads(target.read_text())
    assert document["cells"][-1]["outputs"][0]["text"] == ["batch\n"]


# --- GPUs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "archs", "expected"),
    [
        ((6, 0), ARCHS, False),  # P100
        ((7, 0), ARCHS, True),
        ((7, 5), ARCHS, True),  # T4
        ((8, 9), ARCHS, True),  # L4 runs sm_80's and sm_86's binaries
        ((9, 0), ARCHS, True),
        ((10, 3), ARCHS, True),
        ((6, 0), [], False),
        ((7, 0), ["sm_75"], False),
        ((8, 0), ["sm_75"], False),
        ((9, 0), ["compute_75"], True),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((8, 0), ["compute_90"], False),
        ((9, 0), ["compute_90"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a"], False),
        ((7, 5), ["nonsense"], False),
    ],
)
def test_binaries_run_on_their_own_major_version_and_ptx_on_newer_ones(
    capability: tuple[int, int], archs: list[str], expected: bool
) -> None:
    assert has_kernels_for(capability, archs) is expected


def test_the_drivers_listing_is_read() -> None:
    gpus = parse_driver("Tesla T4, 15360\nTesla T4, 15360\nTesla T4, [N/A]\n, 15360\nNVIDIA-SMI has failed\n")

    assert [(gpu.name, gpu.memory_bytes, gpu.supported) for gpu in gpus] == [
        ("Tesla T4", 15 * 2**30, None)
    ] * 2


def test_a_load_is_read_where_both_sides_of_it_are_told() -> None:
    loads = parse_load(
        "512, 1024, 50\n512, 1024, [N/A]\n[N/A], 1024, 50\n512, [N/A], 50\n512, 1024\nfailed\n"
    )
    half = GpuLoad(used_bytes=2**29, total_bytes=2**30)
    assert loads == (dataclasses.replace(half, busy=0.5), half, half)


def test_a_gauge_asks_anew_once_it_was_answered_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    load = GpuLoad(used_bytes=1, total_bytes=4)
    answers, may_answer, answered = iter([(load,), ()]), threading.Semaphore(0), threading.Semaphore(0)

    class Gauge(GpuGauge):
        def _ask(self) -> None:
            may_answer.acquire(timeout=60.0)
            super()._ask()
            answered.release()

    monkeypatch.setattr(module, "ask_load", lambda: next(answers))
    gauge = Gauge(every_s=0.0)
    assert gauge() == gauge() == ()
    may_answer.release()
    answered.acquire(timeout=60.0)
    assert gauge._asking is not None
    gauge._asking.result(60.0)
    assert gauge() == gauge() == (load,)
    may_answer.release()
    answered.acquire(timeout=60.0)
    assert gauge._loads == ()


def test_a_gauge_asks_no_more_often_than_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "ask_load", lambda: asked.append(1) or ())
    gauge = GpuGauge(every_s=3600.0)
    for _ in range(3):
        gauge()
        assert gauge._asking is not None
        gauge._asking.result(60.0)
    assert asked == [1]


@pytest.mark.parametrize(("code", "names"), [(0, ["Tesla T4"]), (9, [])])
def test_the_driver_s_listing_counts_where_it_did_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, names: list[str]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho Tesla T4, 15360\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert [gpu.name for gpu in ask_driver()] == names


def test_the_driver_is_asked_only_where_torch_sees_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = (Gpu(name="Tesla T4", memory_bytes=2**34),)
    usable = (dataclasses.replace(listed[0], capability=(7, 5), supported=True),)
    monkeypatch.setattr(module, "ask_driver", lambda: listed)
    for gpus, expected in (((), listed), (usable, usable)):
        monkeypatch.setattr(module, "ask_torch", lambda gpus=gpus, **_: ("2.6.0", "", gpus, None))
        assert survey(KagglePaths.below(tmp_path), environ={}).gpus == expected


@pytest.mark.parametrize("device", [True, False])
def test_where_there_is_no_gpu_a_session_does_not_wait_for_torch_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: bool
) -> None:
    asked: list[float] = []

    def ask(*, timeout_s: float) -> tuple[str, str, tuple[Gpu, ...], None]:
        asked.append(timeout_s)
        return "2.6.0", "", (), None

    monkeypatch.setattr(module, "ask_torch", ask)
    monkeypatch.setattr(module, "has_gpu_device", lambda: device)
    found = survey(KagglePaths.below(tmp_path), environ={}, ask=False)
    assert (bool(asked), found.gpus) == (device, ())
    assert found.torch == ("2.6.0" if device else metadata.version("torch"))


def test_torch_is_asked_in_a_process_of_its_own() -> None:
    version, problem, *_ = ask_torch()
    assert (version, problem) == (metadata.version("torch"), "")


def test_a_python_without_torch_tells_why(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)

    assert ask_torch(str(python)) == (None, "ModuleNotFoundError: No module named 'torch'", (), None)


def test_a_torch_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)

    version, problem, gpus, _ = ask_torch(str(python), timeout_s=0.2)

    assert version is None
    assert "took more than" in problem
    assert gpus == ()


# --- folders ----------------------------------------------------------------------------------


def test_sources_are_listed_in_both_layouts(tmp_path: Path) -> None:
    expected = [
        "competitions/titanic",
        "datasets/me/earthvqa",
        "earthvqa-old",
        "models/owner/model/pytorch/default/1",
        "notebooks/me/last-run",
    ]
    for name in expected:
        (tmp_path / name / "data").mkdir(parents=True)

    assert [str(path.relative_to(tmp_path)) for path in attached(tmp_path)] == expected


def test_an_input_folder_that_is_not_there_has_no_sources(tmp_path: Path) -> None:
    assert list(attached(tmp_path / "absent")) == []


def test_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    assert write_problem(tmp_path)[0] == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_be_made_can_be_written_to_and_is_not_made(tmp_path: Path) -> None:
    assert write_problem(tmp_path / "a" / "b")[0] == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "Not a directory" in write_problem(tmp_path / "file" / "working")[0]


def test_a_folder_of_somebody_else_is_found_out() -> None:
    """Root may write anywhere, so the child becomes nobody, to whom pytest's folders are closed."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        code = f"""
import os
from pathlib import Path
from mapsage_kaggle.machine import write_problem
if os.geteuid() == 0:
    os.setuid(65534)
print(*write_problem(Path({folder!r}) / "working"))
"""
        answer = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )

    assert answer.stdout.strip() == f"{folder}: Permission denied False"


def test_a_full_disk_is_found_out(tmp_path: Path) -> None:
    """A limit on the size of files makes the write fail, as a full disk does."""
    code = f"""
import resource
from pathlib import Path
from mapsage_kaggle.machine import write_problem
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
print(*write_problem(Path({str(tmp_path)!r})))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == f"{tmp_path}: File too large False"


@pytest.mark.parametrize("can", [True, False])
def test_freed_memory_is_returned_or_kept_where_the_c_library_can(
    can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    functions = {name: lambda *arguments: asked.append(arguments) for name in ("malloc_trim", "mallopt")}
    library = types.SimpleNamespace(**(functions if can else {}))
    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: library)
    return_freed_memory()
    keep_freed_memory()
    assert asked == [(0,), (-4, 0), (-1, 2**31 - 1)] * can


def test_a_large_block_that_was_freed_and_kept_is_not_cleared_anew() -> None:
    code = (
        "import resource, sys, torch\n"
        "from mapsage_kaggle.machine import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': keep_freed_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def fill():\n"
        "    before = faults()\n"
        "    torch.empty(2**26, dtype=torch.uint8).fill_(1)\n"
        "    return faults() - before\n"
        "print(min(fill() for _ in range(6)))\n"
    )
    keeping, stock = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, check=True).stdout)
        for how in ("keep", "stock")
    )
    if stock < 1000:
        pytest.skip("this C library keeps large blocks by itself, or its pages are large")
    assert keeping < stock / 10


def test_the_survey_sees_this_machine(tmp_path: Path) -> None:
    paths = KagglePaths.below(tmp_path)
    (paths.input / "earthvqa").mkdir(parents=True)
    paths.working.mkdir()
    (paths.working / "iter_8.pth").write_bytes(b"1234")

    machine = survey(paths, environ={"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "MAPSAGE_KAGGLE_ROOT": "x"})

    assert (machine.on_kaggle, machine.run_type) == (False, "interactive")
    assert (machine.working_num_files, machine.working_used_bytes) == (1, 4)
    assert machine.inputs == (paths.input / "earthvqa",)
    assert machine.working_problem == ""
    assert machine.working_free_bytes
    assert machine.ram_bytes > 2**28
    assert machine.num_cpus >= 1
    assert machine.torch
    assert machine.installed == installed_stack()
    assert to_json(preflight(paths, machine))["ok"] is True


# --- verdicts ---------------------------------------------------------------------------------


def test_a_good_machine_passes_every_check() -> None:
    checks = preflight(PATHS, GOOD, clock=SessionClock(started_s=0.0, now=lambda: 300.0))

    assert [check.name for check in checks if not check.ok] == []
    assert to_json(checks)["ok"] is True
    require(checks)


@pytest.mark.parametrize(
    ("name", "level", "changes", "words"),
    [
        ("python", "error", {"python": "3.9.18"}, "3.10 to 3.13"),
        ("python", "warning", {"python": "3.14.0"}, "3.10 to 3.13"),
        ("torch", "error", {"torch": None, "torch_problem": "No module named 'torch'"}, "No module named"),
        ("torch", "error", {"torch": "2.5.1"}, "older than 2.6"),
        ("stack", "error", {"installed": {}}, "mapsage_kaggle.install()"),
        ("stack", "error", {"installed": {**STACK, "onedl-mmcv": "2.3.0"}}, "onedl-mmcv 2.3.6 (2.3.0 found)"),
        ("stack", "error", {"installed": {**STACK, "mmcv": "2.1.0"}}, "pip uninstall -y mmcv onedl-mmengine"),
        ("gpu", "warning", {"gpus": ()}, "verified phone number"),
        (
            "gpu",
            "error",
            {"gpus": (Gpu(name="Tesla P100", memory_bytes=2**34, capability=(6, 0), supported=False),)},
            "no kernels for Tesla P100 (sm_60)",
        ),
        ("gpu", "warning", {"gpus": (Gpu(name="Tesla T4", memory_bytes=2**34),)}, "built for CUDA"),
        ("internet", "warning", {"internet": False, "installed": {}}, "attach a data set"),
        ("inputs", "warning", {"inputs": ()}, "Add Input"),
        ("working", "error", {"working_problem": "/kaggle/working: Read-only file system"}, "--work-dir"),
        (
            "working",
            "error",
            {"working_problem": "/kaggle: Disk quota exceeded", "working_is_full": True},
            "Delete",
        ),
        ("disk", "error", {"working_free_bytes": 10**9}, "1.0 GB are free"),
        ("disk", "warning", {"working_free_bytes": None}, "cannot be read"),
        ("output", "warning", {"working_num_files": 450}, "450 files"),
        ("output", "warning", {"working_used_bytes": 19 * 10**9}, "19.0 GB"),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(
    name: str, level: str, changes: dict[str, Any], words: str
) -> None:
    check = judged(name, **changes)

    assert (check.ok, check.level) == (False, level)
    assert words in check.message


def test_without_internet_nothing_is_wrong_where_all_is_installed() -> None:
    assert judged("internet", internet=False).ok


def test_a_full_output_does_not_matter_away_from_kaggle() -> None:
    assert judged("output", working_num_files=450, on_kaggle=False).ok


@pytest.mark.parametrize(
    ("elapsed_s", "level"), [(12 * 3600.0, "error"), (11.6 * 3600, "warning"), (60.0, "info")]
)
def test_the_time_left_is_judged(elapsed_s: float, level: str) -> None:
    clock = SessionClock(started_s=0.0, now=lambda: elapsed_s)
    check = preflight(PATHS, GOOD, clock=clock)[-1]

    assert (check.name, check.level) == ("clock", level)


def test_a_warning_stops_nothing_and_an_error_all() -> None:
    warned = preflight(PATHS, dataclasses.replace(GOOD, gpus=()))
    require(warned)
    assert to_json(warned)["ok"] is True

    failed = preflight(PATHS, dataclasses.replace(GOOD, torch=None, working_problem="/kaggle: Read-only"))
    with pytest.raises(MachineError, match=r"torch: .* working: .*Read-only") as caught:
        require(failed)
    assert caught.value.exit_code == EXIT_MACHINE
    assert to_json(failed)["ok"] is False


def test_the_document_has_the_contracts_keys() -> None:
    document = to_json(preflight(PATHS, GOOD))

    assert set(document) == {"ok", "checks"}
    assert all(set(check) == {"name", "ok", "level", "message"} for check in document["checks"])


def test_no_secret_of_the_environment_is_told(tmp_path: Path) -> None:
    secret = "s3cret-token"
    environ = {
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "KAGGLE_USER_SECRETS_TOKEN": secret,
        "KAGGLE_DATA_PROXY_TOKEN": secret,
        "KAGGLE_API_V1_TOKEN": secret,
    }
    paths = KagglePaths.below(tmp_path)
    machine = survey(paths, environ=environ, timeout_s=0.01)

    assert secret not in repr(machine)
    assert secret not in json.dumps(to_json(preflight(paths, machine)))


# --- memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/vmstat": "pgfault 7\noom_kill 2\n"}, 2),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.events": "oom 4\noom_kill 3\noom_group_kill 0\n",
                "sys/fs/cgroup/memory.events": "oom_kill 9\n",
                "proc/vmstat": "oom_kill 8\n",
            },
            3,
        ),
        ({"proc/self/cgroup": "0::/host/c\n", "sys/fs/cgroup/memory.events": "oom_kill 1\n"}, 1),
        (
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:memory,hugetlb:/m\n0::/\n",
                "sys/fs/cgroup/memory/m/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
            },
            5,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.events": "low 0\n", "proc/vmstat": ""}, None),
    ],
    ids=["nothing", "machine", "cgroup 2", "cgroup 2 in a container", "cgroup 1", "not counted"],
)
def test_what_the_kernel_has_killed_for_memory_is_counted(
    files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert oom_kills(tmp_path) == expected
