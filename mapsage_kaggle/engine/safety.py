"""Make mmengine load every file through the kit's safe loader."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mmengine.runner.checkpoint as engine_checkpoint
from mmengine.runner import CheckpointLoader

from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.config.weights import ATTACHED_MMCLS

_expected_sha256: dict[Path, str] = {}
_ahead: dict[Path, Future[dict[str, Any]]] = {}


def expect(path: Path, sha256: str) -> None:
    """Refuse to load ``path`` with other content than the one that was verified."""
    _expected_sha256[path.resolve()] = sha256


def load_ahead(path: Path, sha256: str) -> None:
    """Start loading a file in a thread, while the model that it is for is imported and built.

    :func:`load_local` then returns the result, or raises the error, once. mmengine must have been imported,
    see :func:`mapsage_kaggle.checkpoints.load.load_checkpoint`.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
    _ahead[path.resolve()] = executor.submit(load_checkpoint, path, sha256=sha256)
    executor.shutdown(wait=False)  # its thread ends with the file


def load_local(filename: str, map_location: Any = None) -> Any:
    """Load a local file to the CPU. The signature is that of mmengine's loaders.

    ``map_location`` is ignored: a model that fits the card once must not need it twice at a resume.

    Raises:
        CheckpointError: The file is missing, unsafe, or not the one that was verified.
    """
    path = Path(filename).expanduser()
    ahead = _ahead.pop(path.resolve(), None)
    if ahead is not None:
        return ahead.result()
    return load_checkpoint(path, sha256=_expected_sha256.get(path.resolve()))


def install_safe_loading() -> None:
    """Replace mmengine's loaders, which fall back to a full unpickle.

    It covers resumes, ``load_from`` and ``init_cfg=dict(type='Pretrained', ...)`` alike. Downloads
    go through torch's cache to the same loader.
    """
    CheckpointLoader.register_scheme(prefixes="", loader=load_local, force=True)
    CheckpointLoader.register_scheme(prefixes=("http://", "https://"), loader=_load_url, force=True)
    CheckpointLoader.register_scheme(prefixes=ATTACHED_MMCLS, loader=load_from_attached_mmcls, force=True)
    # What is left of mmengine's schemes (modelzoo://, open-mmlab://, ...) ends in one of these two.
    engine_checkpoint.load_from_http = _load_url
    engine_checkpoint._safe_torch_load = _load_any


def load_from_attached_mmcls(filename: str, map_location: Any = None) -> Any:
    """Load an attached file of ``mmcls://``, and extract from it what mmengine does."""
    return engine_checkpoint._process_mmcls_checkpoint(load_local(filename.removeprefix(ATTACHED_MMCLS)))


def _load_any(file: Any, map_location: Any = None, weights_only: Any = None) -> Any:
    return load_checkpoint(Path(file) if isinstance(file, str) else file)


def _load_url(filename: str, map_location: Any = None, model_dir: str | None = None, **_: Any) -> Any:
    import torch.hub

    folder = Path(model_dir or torch.hub.get_dir()) / "checkpoints"
    target = folder / filename.rsplit("/", 1)[-1]
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(filename, str(target), progress=False)
    return load_local(str(target))
