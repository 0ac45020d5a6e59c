"""What `predict` takes for one large scene: the memory of all its processes, and the time.

    python tests/benchmarks/bench_scene.py [--side 20000] [--window 1024] [--folder DIR] [--json]

A GeoTIFF of side x side pixels with a border of no data is generated, and the command runs on it as a
person types it, with every kind of result: mask, overlay, probability map, polygons. The model is a small
SegFormer with random weights: its map is far more broken than a trained model's, which is the worst case
for polygons. *Memory* is the highest sum of the resident memory of the command and its child, looked at ten
times a second; what the two share is counted twice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "configs" / "demo.py"
SMALLER = (
    "model.backbone.embed_dims=8",
    "model.decode_head.in_channels=[8,16,32,48]",
    "model.backbone.sr_ratios=[16,8,4,2]",
)
BORDER = 100
_EVERY_S = 0.1


def write_scene(path: Path, side: int) -> None:
    """Write a scene from a few drawn ones, laid side by side, never held whole."""
    from mapsage_kaggle.data.scenes import draw_scene

    tile = 1024
    drawn = [draw_scene(tile, (number,))[0] for number in range(4)]
    profile = {
        "driver": "GTiff", "count": 3, "dtype": "uint8", "width": side, "height": side, "nodata": 0,
        "crs": "EPSG:32650", "transform": from_origin(500_000.0, 3_400_000.0, 0.3, 0.3), "tiled": True,
        "compress": "deflate", "zlevel": 1, "photometric": "RGB",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        for row, top in enumerate(range(0, side, tile)):
            strip = np.concatenate([drawn[(row + i) % 4] for i in range(-(-side // tile))], 1)[:, :side]
            strip = np.maximum(strip[: side - top], 1)
            strip[:, :BORDER] = strip[:, -BORDER:] = 0
            target.write(np.moveaxis(strip, -1, 0), window=Window(0, top, side, len(strip)))


def write_weights(path: Path) -> None:
    """Write random weights for `configs/demo.py` of which no class outweighs the others."""
    import torch

    import mapsage_kaggle.engine.register  # noqa: F401
    from mapsage_kaggle.data.scenes import draw_scene
    from mapsage_kaggle.engine.jobs.inference import build_model

    torch.manual_seed(0)
    net = build_model(for_inference(read_config(CONFIG, SMALLER), {})).eval()
    image = torch.from_numpy(draw_scene(256, (0,))[0].transpose(2, 0, 1).copy()).float()
    with torch.inference_mode():
        inputs = net.data_preprocessor({"inputs": [image]}, False)["inputs"]
        logits = net.encode_decode(inputs, [{"img_shape": inputs.shape[2:]}])
        net.decode_head.conv_seg.bias -= logits.mean((0, 2, 3))
    torch.save({"meta": {}, "state_dict": net.state_dict()}, path)


def resident_bytes(pid: int) -> int:
    """Return what a process and all below it hold in memory."""
    root = Path("/proc") / str(pid)
    try:
        num_pages = int((root / "statm").read_text().split()[1])
        children = [child for file in root.glob("task/*/children") for child in file.read_text().split()]
    except OSError:  # has just ended
        return 0
    return num_pages * os.sysconf("SC_PAGE_SIZE") + sum(resident_bytes(int(child)) for child in children)


def predict(folder: Path, window: int, threads: int) -> tuple[float, int]:
    """Run the command; return the seconds and the most memory it held."""
    command = [
        sys.executable, "-m", "mapsage_kaggle", "predict", str(CONFIG), str(folder / "weights.pth"),
        str(folder / "scene.tif"), "--out", str(folder / "out"), "--window", str(window), "--device", "cpu",
        "--threads", str(threads),
        "--overlay", "--probabilities", "--polygons", *(part for key in SMALLER for part in ("--set", key)),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MAPSAGE_KAGGLE_ROOT": str(folder)}
    began, most = time.perf_counter(), 0
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None:
            most = max(most, resident_bytes(process.pid))
            time.sleep(_EVERY_S)
    if process.returncode:
        raise SystemExit(f"predict ended with exit code {process.returncode}")
    return time.perf_counter() - began, most


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder otherwise")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        (folder / "input").mkdir()
        write_scene(folder / "scene.tif", options.side)
        write_weights(folder / "weights.pth")
        seconds, most = predict(folder, options.window, options.threads)
        sizes = {
            str(path.relative_to(folder / "out")): path.stat().st_size
            for path in sorted((folder / "out").rglob("*"))
            if path.is_file()
        }
    if options.json:
        print(json.dumps({"seconds": seconds, "memory_bytes": most, "size_bytes": sizes}))
        return
    print(f"{options.side} x {options.side} pixels, windows of {options.window}: {seconds:.0f} s")
    print(f"  memory at most {most / 1e9:.2f} GB")
    for path, size in sizes.items():
        print(f"  {path:28} {size / 1e6:9.1f} MB")


if __name__ == "__main__":
    main()
