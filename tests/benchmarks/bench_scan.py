"""How fast the scan is, beside GNU find, on a local disk and on one that answers slowly.

Run ``python tests/benchmarks/bench_scan.py``. It makes two trees of 100,000 empty images with one
checkpoint beside them: in 1,000 folders of 100, and in 10 folders of 10,000.

The slow file system is made by a library, compiled here with gcc and loaded into both programs with
LD_PRELOAD, so that both pay the same: each opendir, fdopendir, stat, lstat, fstatat and statx of a
place in the tree sleeps for 1 ms before it is passed on. (find calls them with paths relative to an
open folder, so every relative path counts; Python's own start-up uses absolute ones outside of the
tree, and is free.) On a real network a large folder costs several answers per listing; here, one.

The scan is timed inside a fresh process, without the interpreter's start, since it runs inside the
supervisor; find is timed from outside, since it is started for the purpose. The last column has the
scan with the interpreter's start.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SHIM = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static void pay(const char *path) {
    const char *root = getenv("SLOW_ROOT"), *text = getenv("SLOW_US");
    if (!root || !text) return;
    if (path && path[0] == '/' && strncmp(path, root, strlen(root)) != 0) return;
    long us = atol(text);
    struct timespec wait = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&wait, NULL);
}
#define NEXT(type, name, ...) \
    static type (*next)(__VA_ARGS__); \
    if (!next) next = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

DIR *opendir(const char *path) { NEXT(DIR *, "opendir", const char *); pay(path); return next(path); }
DIR *fdopendir(int fd) { NEXT(DIR *, "fdopendir", int); pay(NULL); return next(fd); }
int stat(const char *p, struct stat *s) {
    NEXT(int, "stat", const char *, struct stat *); pay(p); return next(p, s);
}
int lstat(const char *p, struct stat *s) {
    NEXT(int, "lstat", const char *, struct stat *); pay(p); return next(p, s);
}
int fstatat(int d, const char *p, struct stat *s, int f) {
    NEXT(int, "fstatat", int, const char *, struct stat *, int); pay(p); return next(d, p, s, f);
}
int stat64(const char *p, struct stat64 *s) {
    NEXT(int, "stat64", const char *, struct stat64 *); pay(p); return next(p, s);
}
int lstat64(const char *p, struct stat64 *s) {
    NEXT(int, "lstat64", const char *, struct stat64 *); pay(p); return next(p, s);
}
int fstatat64(int d, const char *p, struct stat64 *s, int f) {
    NEXT(int, "fstatat64", int, const char *, struct stat64 *, int); pay(p); return next(d, p, s, f);
}
int statx(int d, const char *restrict p, int f, unsigned m, struct statx *restrict s) {
    NEXT(int, "statx", int, const char *, int, unsigned, struct statx *); pay(p); return next(d, p, f, m, s);
}
"""

_SCAN = """
import json, sys, time
from pathlib import Path
from mapsage_kaggle.checkpoints.scan import scan
started = time.perf_counter()
report = scan(Path(sys.argv[1]))
print(json.dumps([time.perf_counter() - started, len(report.files)]))
"""


def make_tree(root: Path, *, num_folders: int, num_files: int) -> None:
    """Make a data set of ``num_folders * num_files`` images, and one checkpoint beside it."""
    for folder in range(num_folders):
        inner = root / "datasets" / "alice" / "tiles" / f"area_{folder:04d}"
        inner.mkdir(parents=True)
        for index in range(num_files):
            os.close(os.open(inner / f"{index:06d}.png", os.O_CREAT | os.O_WRONLY))
    run = root / "notebooks" / "alice" / "train" / "work_dirs" / "run"
    run.mkdir(parents=True)
    (run / "iter_8000.pth").write_bytes(b"x")


def time_find(root: Path, environ: dict[str, str]) -> float:
    """Return the seconds that GNU find takes for the one checkpoint."""
    started = time.perf_counter()
    done = subprocess.run(
        ["find", str(root), "-name", "iter_*.pth"], capture_output=True, text=True, check=True, env=environ
    )
    took = time.perf_counter() - started
    assert len(done.stdout.splitlines()) == 1
    return took


def time_scan(root: Path, environ: dict[str, str]) -> tuple[float, float]:
    """Return the seconds that the scan takes, alone and with the interpreter's start."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _SCAN, str(root)], capture_output=True, text=True, check=True, env=environ
    )
    whole = time.perf_counter() - started
    took, count = json.loads(done.stdout)
    assert count == 1
    return float(took), whole


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--latency-us", type=int, default=1000)
    arguments = parser.parse_args()
    if shutil.which("gcc") is None:
        sys.exit("gcc is needed to compile the library that makes the file system slow")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slow.c").write_text(_SHIM)
        shim = folder / "slow.so"
        subprocess.run(
            ["gcc", "-O2", "-shared", "-fPIC", "-o", str(shim), str(folder / "slow.c"), "-ldl"], check=True
        )
        version = subprocess.run(["find", "--version"], capture_output=True, text=True, check=True)
        print(
            f"{version.stdout.splitlines()[0]}; {os.cpu_count()} CPUs; medians of {arguments.repeats}, in ms"
        )
        header = f"{'tree':<14} {'latency':<9} {'find':>8} {'scan':>8} {'find / scan':>12}"
        print(f"{header} {'with start':>11}")
        for num_folders, num_files in ((1000, 100), (10, 10_000)):
            root = folder / f"tree_{num_folders}"
            make_tree(root, num_folders=num_folders, num_files=num_files)
            for latency_us in (0, arguments.latency_us):
                environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
                if latency_us:
                    environ.update(LD_PRELOAD=str(shim), SLOW_ROOT=str(root), SLOW_US=str(latency_us))
                finds: list[float] = []
                scans: list[tuple[float, float]] = []
                for _ in range(arguments.repeats):  # in turn, so that a busy moment hits both
                    finds.append(time_find(root, environ))
                    scans.append(time_scan(root, environ))
                find_s = statistics.median(finds)
                scan_s = statistics.median(took for took, _ in scans)
                whole_s = statistics.median(whole for _, whole in scans)
                tree = f"{num_folders} x {num_files}"
                latency = f"{latency_us / 1000:g} ms" if latency_us else "none"
                print(
                    f"{tree:<14} {latency:<9} {find_s * 1e3:>8.1f} {scan_s * 1e3:>8.1f} "
                    f"{find_s / scan_s:>12.1f} {whole_s * 1e3:>11.1f}"
                )


if __name__ == "__main__":
    main()
