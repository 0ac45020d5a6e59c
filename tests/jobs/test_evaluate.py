"""`evaluate` counts what mmsegmentation counts, goes on where it was, and tells a gain from noise."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from support.models import DEMO, demo, write_model
from support.standin import REPOSITORY, StandIn

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.display.evaluated import evaluation_panel, evaluation_text, read_evaluations
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.engine.jobs.evaluate import build_data, example, look
from mapsage_kaggle.engine.jobs.inference import PLAIN, load_model, windows_of
from mapsage_kaggle.engine.metric import confusion_matrix
from mapsage_kaggle.errors import ConfigError, DataError, UsageError
from mapsage_kaggle.jobs.evaluate import EvaluationOptions

SLIDE = {"mode": "slide", "crop_size": (96, 96), "stride": (64, 64)}


# -- against mmsegmentation


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    generate_scenes(folder, train=1, val=4, size=160, seed=1)
    return folder


@pytest.mark.parametrize("test_cfg", [{"mode": "whole"}, SLIDE], ids=["whole", "slide"])
@pytest.mark.parametrize("padding", [{}, {"size_divisor": 96}], ids=["bare", "padded"])
def test_the_counts_are_those_of_mmsegmentations_own_test_loop_and_metric(
    scenes: Path, tmp_path: Path, test_cfg: dict[str, Any], padding: dict[str, Any]
) -> None:
    from mmengine.dataset import pseudo_collate
    from mmseg.evaluation import IoUMetric

    cfg = demo(scenes)
    cfg.model.test_cfg = test_cfg
    cfg.model.data_preprocessor.test_cfg = padding
    model = load_model(cfg, write_model(cfg, tmp_path / "w.pth", 1), device="cpu")
    model.net.test_cfg = Config({"x": test_cfg}).x
    data = build_data(cfg, "val_dataloader")
    metric = IoUMetric(iou_metrics=["mIoU", "mFscore"])
    metric.dataset_meta = data.metainfo
    found = torch.zeros(9, 9, dtype=torch.int64)

    for index in range(len(data)):
        with torch.inference_mode():
            samples = model.net.test_step(pseudo_collate([data[index]]))
        metric.process({}, [sample.to_dict() for sample in samples])
        pair = look(model, data[index], windows=windows_of(test_cfg, batch=1), views=PLAIN)
        found += confusion_matrix(*pair, 8, 255)

    intersect, union, predicted, labelled = (sum(column) for column in zip(*metric.results, strict=True))
    assert torch.equal(found.diagonal()[:-1], intersect.long())
    assert torch.equal(found.sum(dim=0)[:-1], predicted.long())
    assert torch.equal(found.sum(dim=1)[:-1], labelled.long())
    assert torch.equal(found.sum(0)[:-1] + found.sum(1)[:-1] - found.diagonal()[:-1], union.long())
    assert int((intersect > 0).sum()) > 2


def test_a_mask_of_another_size_than_its_image_is_refused(scenes: Path, tmp_path: Path) -> None:
    cfg = demo(scenes)
    model = load_model(cfg, write_model(cfg, tmp_path / "w.pth", 1), device="cpu")
    item = build_data(cfg, "val_dataloader")[0]
    item["data_samples"].gt_sem_seg = item["data_samples"].gt_sem_seg[:80, :]
    with pytest.raises(DataError, match=r"\(80, 160\) pixels \(height, width\), its prediction \(160, 160\)"):
        look(model, item, windows=None, views=PLAIN)


def test_the_scores_are_mmsegmentations_to_its_two_decimals(scenes: Path, tmp_path: Path) -> None:
    import numpy as np
    from mmseg.evaluation import IoUMetric

    from mapsage_kaggle.metrics import score

    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, 8, (1, 64, 64), generator=generator)
    label = torch.where(torch.rand(64, 64, generator=generator) < 0.6, prediction[0], 3)[None]
    label[0, :4] = 255
    cfg = demo(scenes)
    metric = IoUMetric(iou_metrics=["mIoU", "mFscore"])
    metric.dataset_meta = {"classes": build_data(cfg, "val_dataloader").metainfo["classes"]}
    metric.process({}, [{"pred_sem_seg": {"data": prediction}, "gt_sem_seg": {"data": label}}])
    expected = metric.evaluate(1)

    counts = confusion_matrix(prediction[0], label[0], 8, 255).numpy()
    found = score(counts, metric.dataset_meta["classes"], num_images=1)

    ours = [found.miou, found.mean_accuracy, found.accuracy, found.mean_f1]
    theirs = [expected[name] for name in ("mIoU", "mAcc", "aAcc", "mFscore")]
    assert np.round([100 * value for value in ours if value is not None], 2).tolist() == pytest.approx(theirs)


def test_an_example_shows_image_mask_and_prediction_in_the_classes_colours() -> None:
    import io

    import numpy as np
    from PIL import Image

    red_image = torch.zeros(3, 20, 30)
    red_image[2] = 200.0
    label = torch.full((20, 30), 255)
    label[:10] = 1
    prediction = torch.zeros(20, 30, dtype=torch.int64)

    found = example({"inputs": red_image}, prediction, label, [(9, 8, 7), (1, 2, 3)])

    pixels = np.asarray(Image.open(io.BytesIO(found)))
    assert pixels.shape == (20, 3 * 30 + 2 * 4, 3)
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert pixels[0, 34].tolist() == [1, 2, 3]
    assert pixels[19, 34].tolist() == [64, 64, 64]
    assert pixels[0, 68].tolist() == [9, 8, 7]


# -- what is refused


def test_options_that_contradict_each_other_are_refused() -> None:
    for wrong in (
        {"whole": True, "window": 64},
        {"stride": 32},
        {"window": 64, "stride": 65},
        {"scales": (0.0,)},
        {"window_batch": 0},
    ):
        with pytest.raises(UsageError):
            EvaluationOptions(**wrong)  # type: ignore[arg-type]


def test_views_are_every_scale_in_every_flip() -> None:
    assert EvaluationOptions().views() == [(1.0, "")]
    found = EvaluationOptions(flips=("horizontal",), scales=(1.0, 0.5)).views()
    assert found == [(1.0, ""), (1.0, "horizontal"), (0.5, ""), (0.5, "horizontal")]


def test_a_config_without_the_split_is_refused(scenes: Path) -> None:
    cfg = demo(scenes)
    cfg.val_dataloader = None
    with pytest.raises(ConfigError, match="has no data loader val_dataloader"):
        build_data(cfg, "val_dataloader")


# -- the command


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    stand = StandIn.with_scenes(tmp_path_factory.mktemp("kaggle"), val=10, size=128)
    cfg = demo(stand.root / "input" / "scenes")
    for seed in (1, 2):
        write_model(cfg, stand.root / f"best_{seed}.pth", seed)
    return stand


def evaluate(stand: StandIn, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return stand.run("evaluate", DEMO, *arguments, "--threads", "1", "--device", "cpu")


@pytest.mark.slow(scope_s=25)
def test_a_killed_evaluation_goes_on_and_ends_as_one_that_was_not(there: StandIn) -> None:
    checkpoint = there.root / "best_1.pth"
    whole = evaluate(there, checkpoint, "--json", "--work-dir", there.root / "working" / "uncut")
    assert whole.returncode == 0, whole.stderr
    cut = there.root / "working" / "cut"
    command = replace(there, cold=True).command(
        "evaluate", DEMO, checkpoint, "--work-dir", cut, "--threads", "1", "--device", "cpu"
    )
    process = subprocess.Popen(
        command, env=there.environment(), cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 120
    while not any(len(file.read_bytes().splitlines()) >= 3 for file in cut.glob("evaluation/*.jsonl")):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [tally] = cut.glob("evaluation/*.jsonl")
    num_counted = len(tally.read_bytes().splitlines())

    again = evaluate(there, checkpoint, "--json", "--work-dir", cut)

    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(whole.stdout)
    assert 3 <= num_counted <= 10
    assert len(tally.read_bytes().splitlines()) >= 10


@pytest.mark.slow
def test_two_checkpoints_are_compared_image_by_image_and_told_in_both_languages(there: StandIn) -> None:
    one, other = there.root / "best_1.pth", there.root / "best_2.pth"
    work_dir = there.root / "working" / "pair"
    done = evaluate(there, one, "--against", other, "--flips", "horizontal", "--json", "--work-dir", work_dir)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    gain = found["against"]["gain"]
    assert gain["value"] == pytest.approx(found["miou"] - found["against"]["miou"])
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert found["num_images"] == 10
    assert sum(map(sum, found["confusion"])) == sum(item["num_pixels"] for item in found["classes"])
    assert "10 of 10 images" in done.stderr
    [kept] = read_evaluations(work_dir)
    assert kept == found
    assert "best_2.pth" in evaluation_text(found)
    assert "95 % 置信区间" in "".join(evaluation_panel(found, Words("zh")).tail)
    # Against itself there is no gain, and nothing is counted again.
    same = evaluate(there, one, "--against", one, "--flips", "horizontal", "--work-dir", work_dir)
    assert "do not tell which is better" in same.stdout


@pytest.mark.slow
def test_urban_and_rural_are_told_apart_where_the_layout_has_them(tmp_path: Path, loveda: Path) -> None:
    stand = StandIn.with_scenes(tmp_path / "kaggle", val=1)
    root = tmp_path / "tiles"
    for split in ("Train", "Val"):
        for area, tile in (("Urban", "0.png"), ("Rural", "1.png")):
            for kind in ("images_png", "masks_png"):
                folder = root / split / area / kind
                folder.mkdir(parents=True)
                (folder / tile).symlink_to(loveda / kind / tile)
    config = tmp_path / "loveda.py"
    config.write_text(
        f"_base_ = [{str(DEMO)!r}]\n"
        "d = dict(type='LoveDASplitDataset', data_root=" + repr(str(root)) + ")\n"
        "train_dataloader = dict(dataset=d)\nval_dataloader = dict(dataset=d)\n"
        "test_dataloader = val_dataloader\nmodel = dict(decode_head=dict(num_classes=7))\n"
    )
    cfg = for_inference(read_config(config, []), {})
    cfg.model.decode_head.loss_decode.avg_non_ignore = True
    write_model(cfg, tmp_path / "best.pth", 1)

    done = stand.run("evaluate", config, tmp_path / "best.pth", "--json", "--threads", "1", "--device", "cpu")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["areas"]) == {"Rural", "Urban"}
    parts = found["areas"].values()
    assert sum(part["num_images"] for part in parts) == found["num_images"]
    pixels = [sum(map(sum, part["confusion"])) for part in parts]
    assert sum(pixels) == sum(map(sum, found["confusion"]))


def test_a_missing_checkpoint_and_missing_data_end_with_their_codes(tmp_path: Path) -> None:
    stand = StandIn.with_scenes(tmp_path / "kaggle", val=1, train=1, size=64, cold=True)

    assert evaluate(stand, tmp_path / "none.pth").returncode == 3
    assert evaluate(stand).returncode == 3
    assert stand.run("evaluate", tmp_path / "none.py").returncode == 2
    for file in (stand.root / "input" / "scenes").rglob("*.png"):
        file.unlink()
    assert evaluate(stand, tmp_path / "none.pth").returncode in (2, 3)
