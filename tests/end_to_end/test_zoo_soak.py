"""The whole zoo: every config planned, every family trained, cut, gone on with and exported (``make soak``).

Each family writes its line of ``tests/benchmarks/zoo.md`` anew; one by itself, for instance, by
``make soak ARGS='-k "family and pspnet"'``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.standin import StandIn, differences
from support.zoo import CUT, ITERATIONS, SIDES, ZOO, mount, mount_weights, reduced, write_row

from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.config.patch import PatchContext, plan_patch
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.errors import MapsageError
from mapsage_kaggle.events import read_events
from mapsage_kaggle.jobs.export import CARD

CONFIGS = sorted(path for path in ZOO.glob("*/*.py") if path.parent.name != "_base_")
FAMILIES = sorted({path.parent.name for path in CONFIGS})
_SMALL = (
    *("r18", "hr18s", "-tiny", "-t_", "mit-b0", "slim", "-d8-s", "svt-s", "-s_", "stdc1", "s12", "r50"),
    "-b16",
)
LIMITS = ("--threads", "1", "--session-limit", "60m", "--reserve", "10s", "--save-every", "0")


@pytest.mark.soak
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_zoo_is_planned_with_its_own_schedule(config: Path) -> None:
    cfg = read_config(config)
    patch = plan_patch(cfg, config, PatchContext(work_dir=Path("work")))
    assert patch.max_iters == cfg.train_cfg.max_iters
    assert patch.effective_batch == cfg.train_dataloader.batch_size


@pytest.mark.soak
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_family_of_the_zoo_trains_or_says_before_why_not(family: str, tmp_path: Path) -> None:
    config = _smallest(family)
    run = StandIn(root=tmp_path / "kaggle")
    for name in ("input", "working", "temp"):
        (run.root / name).mkdir(parents=True)
    side = SIDES.get(family, 128)
    mount(config, run.root / "input", side=side)
    sizes = reduced(config, side=side)
    work_dir, other = run.root / "working" / "work_dirs" / config.stem, run.root / "working" / "elsewhere"
    try:
        wanted = mount_weights(config, sizes, run.root / "input")
    except MapsageError:
        wanted = []  # what cannot be built is to be refused below

    first = run.run("train", config, *sizes, *LIMITS, timeout_s=3600)
    if first.returncode in (2, 4):
        assert not list(work_dir.glob("iter_*.pth"))
        write_row(family, config.stem, "no: " + first.stderr.strip().splitlines()[-1], "", "", "")
        return
    assert first.returncode == 0, first.stdout + first.stderr
    checkpoint = work_dir / f"iter_{CUT}.pth"
    again = run.run(
        "train", config, *sizes, *LIMITS, "--resume", checkpoint, "--work-dir", other, timeout_s=3600
    )
    assert again.returncode == 0, again.stdout + again.stderr
    ends = [load_checkpoint(folder / f"iter_{ITERATIONS}.pth") for folder in (work_dir, other)]
    assert differences(*ends) == []

    out = tmp_path / "export"
    last = work_dir / f"iter_{ITERATIONS}.pth"
    exported = run.run("export", config, last, "--out", out, *sizes, timeout_s=7200)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    assert all((out / name).is_file() for name in ("model.safetensors", "config.py", "classes.json", CARD))
    forms = ", ".join(f"`{file.name}`" for file in sorted([*out.glob("*.onnx"), *out.glob("*.pt2")]))
    write_row(family, config.stem, "yes", "bit for bit", _loaded(work_dir, wanted), forms or "weights alone")


def _loaded(work_dir: Path, wanted: list[str]) -> str:
    """Return how much of the attached weights arrived, as the session's warnings say."""
    if not wanted:
        return "none named"
    told = [str(item.data.get("message")) for item in read_events(work_dir / "events.jsonl")]
    parts = [match for text in told if (match := re.search(r" gives (\d+ of the \d+) weights", text))]
    return ", ".join(match[1] for match in parts) or "all"


def _smallest(family: str) -> Path:
    configs = [path for path in CONFIGS if path.parent.name == family]
    for token in _SMALL:
        found = [path for path in configs if re.search(re.escape(token), path.stem)]
        if found:
            return found[0]
    return configs[0]
