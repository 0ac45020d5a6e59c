"""EarthVQA and LoveDA as mmsegmentation datasets. Importing this module registers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from mapsage_kaggle.data import datasets
from mapsage_kaggle.errors import DataError
from mapsage_kaggle.messages import Message


class _SplitDataset(BaseSegDataset):
    """One split of a data root, recognised by its layout, so that only ``data_root`` depends on the mount.

    Masks hold 0 for *no data* and class + 1 elsewhere; labels are 255 and the class. ``reduce_zero_label`` is
    False only for masks that have been reduced already. Options that name files have no effect: the split
    decides.

    Raises:
        DataError: There is no such split, or images and masks do not match.
    """

    def __init__(
        self,
        data_root: str | Path | None = None,
        split: str = "Train",
        reduce_zero_label: bool = True,
        **options: Any,
    ) -> None:
        if data_root is None:
            raise DataError(
                Message("{kind} needs a data_root.", type(self).__name__),
                "Set it to the folder that holds Train and Val.",
            )
        self.split = split
        super().__init__(data_root=str(data_root), reduce_zero_label=reduce_zero_label, **options)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one entry for each pair, in the order of :func:`mapsage_kaggle.data.datasets.list_pairs`."""
        root = datasets.read_data_root(Path(self.data_root))
        entries = []
        for pair in datasets.list_pairs(root.split(self.split)):
            entry: dict[str, Any] = {
                "img_path": str(pair.image),
                "label_map": self.label_map,
                "reduce_zero_label": self.reduce_zero_label,
                "seg_fields": [],
            }
            if pair.mask is not None:
                entry["seg_map_path"] = str(pair.mask)
            entries.append(entry)
        return entries


@DATASETS.register_module()
class EarthVQADataset(_SplitDataset):
    """EarthVQA (Wang et al., 2024): eight classes, ``<split>/images_png`` and ``<split>/masks_png``."""

    METAINFO: ClassVar[dict[str, Any]] = {
        "classes": datasets.EARTHVQA_CLASSES,
        "palette": [list(colour) for colour in datasets.EARTHVQA_PALETTE],
    }


@DATASETS.register_module()
class LoveDASplitDataset(_SplitDataset):
    """LoveDA (Wang et al., 2021): seven classes, with ``Urban`` and ``Rural`` below each split.

    mmsegmentation's own ``LoveDADataset`` reads the data set after a conversion that merges the areas;
    this one reads it as published.
    """

    METAINFO: ClassVar[dict[str, Any]] = {
        "classes": datasets.LOVEDA_CLASSES,
        "palette": [list(colour) for colour in datasets.LOVEDA_PALETTE],
    }
