"""Whether labels and classes line up: a small model must be able to learn two real tiles by heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Where the two tiles have the most classes: (tile, left, top) of squares of 256 pixels.
CROPS = ((0, 0, 768), (0, 256, 768), (1, 0, 512), (1, 256, 512))
ITERATIONS = 250


@pytest.mark.soak
# mmsegmentation's default, which its own SegFormer configs keep.
@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore`` is False:UserWarning")
def test_a_small_model_learns_crops_of_real_tiles_by_heart(loveda: Path, tmp_path: Path) -> None:
    import torch
    from mmengine.config import Config
    from mmengine.runner import Runner

    import mapsage_kaggle.engine.data  # noqa: F401  registers the datasets

    for kind in ("images_png", "masks_png"):
        for split in ("Train", "Val"):
            (tmp_path / split / kind).mkdir(parents=True)
            for number, (tile, left, top) in enumerate(CROPS):
                with Image.open(loveda / kind / f"{tile}.png") as picture:
                    crop = picture.crop((left, top, left + 256, top + 256))
                crop.save(tmp_path / split / kind / f"{number}.png")

    cfg = Config.fromfile(CONFIGS / "demo.py")
    cfg.work_dir = str(tmp_path / "work_dir")
    cfg.model.decode_head.norm_cfg.type = "BN"
    cfg.model.decode_head.dropout_ratio = 0.0
    cfg.model.data_preprocessor.size = (256, 256)
    # No augmentation: the question is whether these pixels and these labels belong together.
    plain = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        cfg[name].dataset.data_root = str(tmp_path)
        cfg[name].dataset.pipeline = plain
        cfg[name].num_workers = 0
        cfg[name].persistent_workers = False
    cfg.train_dataloader.batch_size = len(CROPS)
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = cfg.param_scheduler[1].end = ITERATIONS
    cfg.default_hooks.checkpoint = {"type": "CheckpointHook", "by_epoch": False, "interval": 10**6}
    cfg.default_hooks.checkpoint.save_last = False
    cfg.default_hooks.logger.interval = 100
    cfg.experiment_name = "overfit"

    runner = Runner.from_cfg(cfg)
    model = runner.train()

    # Scored here against the values in the files, so that a wrong reduction, which training and mmseg's
    # metric would share, cannot hide.
    classes = runner.val_dataloader.dataset.metainfo["classes"]
    found = np.zeros((len(classes) + 1, len(classes)), np.int64)
    model.eval()
    for batch in runner.val_dataloader:
        with torch.no_grad():
            (sample,) = model.val_step(batch)
        predicted = sample.pred_sem_seg.data.squeeze().numpy()
        with Image.open(tmp_path / "Val" / "masks_png" / Path(sample.img_path).name) as picture:
            values = np.asarray(picture)
        np.add.at(found, (values, predicted), 1)
    counted = found[1:]  # 0 is no data
    union = counted.sum(0) + counted.sum(1) - np.diag(counted)
    iou = {name: counted[c, c] / union[c] for c, name in enumerate(classes) if counted[c].any()}
    print({name: round(float(value), 3) for name, value in iou.items()})
    assert list(iou) == ["background", "building", "road", "water", "forest", "agriculture"]
    assert np.mean(list(iou.values())) > 0.9, iou
    # What training reports is the same score.
    reported = runner.message_hub.get_scalar("val/mIoU").current()
    assert reported == pytest.approx(100 * np.mean(list(iou.values())), abs=0.1)
