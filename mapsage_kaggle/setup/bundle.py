"""Packs the kit, and every wheel that Kaggle's image lacks, into a folder to upload as a data set.

Two builds of one commit give the same bytes: the source is what was committed, what is downloaded and
what wheels are built with is pinned in ``pins/``, and wheels built here are written in one fixed way.

:func:`leave_to_image` decides and is pure; :func:`bundle` acts.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mapsage_kaggle.checks import MAX_PYTHON, MIN_PYTHON
from mapsage_kaggle.errors import MachineError, UsageError
from mapsage_kaggle.kit import kit_files, kit_sha256
from mapsage_kaggle.messages import Message
from mapsage_kaggle.processes import run
from mapsage_kaggle.setup.pip import explain_failure, index_unreachable, run_pip
from mapsage_kaggle.setup.wheels import (
    BUNDLE_MANIFEST,
    EXTRA_LIST,
    PINS,
    BundledFile,
    BundleManifest,
    PinnedWheel,
    WheelMetadata,
    normalise,
    read_pins,
)

KIT = "mapsage-kaggle"
EXTRA = "train"
KAGGLE_PYTHON = "3.12"
NOTEBOOK = "mapsage_train.ipynb"
DATASET_METADATA = "dataset-metadata.json"
IMAGE_LIST = "left_to_image.txt"
TITLE = "MapSage Kaggle"
OWNER_TO_FILL_IN = "INSERT_OWNER_HERE"
DEFAULT_SLUG = "mapsage-kaggle"
PYTHONS = tuple(f"{MIN_PYTHON[0]}.{minor}" for minor in range(MIN_PYTHON[1], MAX_PYTHON[1] + 1))

_OPENCV = re.compile(r"opencv(-contrib)?-python(-headless)?")
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{4,48}[a-z0-9]")
_OWNER = re.compile(r"[a-z0-9][a-z0-9-]*")
_MAX_TOLD = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleReport:
    """What was packed.

    Attributes:
        commit: What it was made from.
        wheels: The wheels, by file name.
        left_to_image: Version by name of each package that the image is to bring along.
        extra: The second folder, with what ``--with`` named; None where it named nothing.
    """

    folder: Path
    commit: str
    wheels: tuple[str, ...]
    left_to_image: Mapping[str, str]
    num_files: int
    size_bytes: int
    extra: Path | None = None


# -- deciding


def pinned(name: str) -> tuple[str, ...]:
    """Return the lines of a list in ``pins/``: ``image``, ``wheels`` or ``build``."""
    lines = (PINS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def image_versions(python: str = KAGGLE_PYTHON) -> dict[str, str]:
    return {item.name: str(item.specifier).removeprefix("==") for item, _ in _pinned_for("image", python)}


def wheels_for(python: str) -> tuple[str, ...]:
    return tuple(
        f"{item.name}{item.specifier} --hash={hashes}" for item, hashes in _pinned_for("wheels", python)
    )


def _pinned_for(name: str, python: str) -> Iterator[tuple[Requirement, str]]:
    environment = target_environment(python)
    for line in pinned(name):
        text, _, hashes = line.partition(" --hash=")
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield requirement, hashes


def target_environment(python: str) -> dict[str, str]:
    """Return the marker environment of a Python on Kaggle's machines, wherever the bundle is made."""
    return {
        **{key: str(value) for key, value in default_environment().items()},
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }


def leave_to_image(
    packed: Sequence[WheelMetadata], image: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, str]:
    """Check that every requirement of what is packed is met, and tell which the image has to meet. Pure.

    Returns:
        Who needs what of each package left to the image, by its name: ``>=2 by someone; ...``.

    Raises:
        MachineError: Something is in neither, or not in the version that is needed.
    """
    versions: dict[str, str] = {canonicalize_name(item.name): item.version for item in packed}
    needed: dict[str, list[str]] = {}
    unmet: list[str] = []
    for item in sorted(packed, key=lambda item: canonicalize_name(item.name)):
        extra = EXTRA if canonicalize_name(item.name) == KIT else ""
        for text in item.requires:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
                continue
            name: str = canonicalize_name(requirement.name)
            if name not in versions and _OPENCV.fullmatch(name):
                # Any build of OpenCV is cv2; the installer leaves the one that is there.
                name = next((other for other in image if _OPENCV.fullmatch(other)), name)
            version = versions.get(name, image.get(name))
            if version is None:
                unmet.append(f"{text} (needed by {item.name}) is neither packed nor in the image")
            elif not requirement.specifier.contains(version, prereleases=True):
                unmet.append(f"{text} (needed by {item.name}) is not met by {name} {version}")
            elif name not in versions:
                needed.setdefault(name, []).append(f"{requirement.specifier or 'any'} by {item.name}")
    if unmet:
        raise MachineError(
            f"The bundle would not be complete: {'; '.join(unmet)}.",
            f"Complete {PINS / 'wheels.txt'} or {PINS / 'image.txt'}.",
        )
    return {name: "; ".join(who) for name, who in sorted(needed.items())}


# -- acting


def bundle(
    out: Path,
    *,
    owner: str = OWNER_TO_FILL_IN,
    slug: str = DEFAULT_SLUG,
    python: str = KAGGLE_PYTHON,
    extra: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> BundleReport:
    """Make a folder that is ready for ``kaggle datasets create``, or for a new version of one.

    It is made beside ``out`` and renamed at the end, so that a failure, a kill or Ctrl-C leaves ``out``
    as it was.

    Args:
        out: The folder. It may be absent, empty, or an earlier bundle, which is then replaced.
        owner: Whose data set it is to be.
        slug: Its name in addresses.
        python: The Python that it is for.
        extra: Further requirements, which go with all that the image lacks of what they need into a second
            folder beside ``out``, its name with ``-extra``. A session installs that where its notebook
            names it.
        say: Called with each step.

    Raises:
        UsageError: ``out`` holds something else, or an argument makes no sense.
        MachineError: This is no git checkout, or the packages cannot be got or built.
    """
    _check_names(owner, slug, python)
    out = out.absolute()
    _refuse_foreign(out)
    beside = out.with_name(f"{out.name}-extra") if extra else None
    if beside is not None:
        _refuse_foreign(beside)
    source = Path(__file__).resolve().parents[2]
    commit, uncommitted = _commit_of(source)
    if uncommitted:
        listed = ", ".join(uncommitted[:_MAX_TOLD]) + (" ..." if len(uncommitted) > _MAX_TOLD else "")
        say(f"Not committed, so not packed as they are: {listed}")
    with _scratch_beside(out) as (scratch, folder):
        say(f"Packing commit {commit[:12]} for Python {python} ...")
        tree = scratch / "tree"
        _export(source, tree)
        wheels = _collect_wheels(tree, scratch, python, say)
        _check_pins(wheels)
        packed = [WheelMetadata.read(wheel) for wheel in wheels]
        left = leave_to_image(packed, image_versions(python), target_environment(python))
        for wheel in wheels:
            wheel.rename(folder / wheel.name)
        [kit] = [item for item in packed if canonicalize_name(item.name) == KIT]
        [kit_wheel] = folder.glob(f"{KIT.replace('-', '_')}-*.whl")
        image = {name: image_versions(python)[name] for name in left}
        needed = [f"{name}=={image[name]}  # needed: {who}\n" for name, who in left.items()]
        _add_what_people_read(tree, folder, kit_wheel, needed)
        files = {str(path.relative_to(folder)): BundledFile.of(path) for path in _files_of(folder)}
        manifest = BundleManifest(kit=kit.version, commit=commit, python=python, image=image, files=files)
        _write(folder / BUNDLE_MANIFEST, json.dumps(manifest.to_json(), indent=2) + "\n")
        _write_metadata(folder, TITLE, f"{owner}/{slug}")
        if beside is not None:
            say(f"Getting {', '.join(extra)}, and what these need beyond the image ...")
            _collect_extra(extra, scratch, python)
            _write_metadata(scratch / "extra", f"{TITLE} extra", f"{owner}/{slug}-extra")
            _put_in_place(scratch / "extra", beside)
        _put_in_place(folder, out)
    everything = _files_of(out)
    return BundleReport(
        folder=out,
        commit=commit,
        wheels=tuple(name for name in sorted(files) if name.endswith(".whl")),
        left_to_image=image,
        num_files=len(everything),
        size_bytes=sum(path.stat().st_size for path in everything),
        extra=beside,
    )


def _check_names(owner: str, slug: str, python: str) -> None:
    if python not in PYTHONS:
        raise UsageError(
            f"The kit does not run on Python {python}.", Message("Choose one of {names}.", ", ".join(PYTHONS))
        )
    if owner != OWNER_TO_FILL_IN and not _OWNER.fullmatch(owner):
        raise UsageError(
            f"{owner!r} is no Kaggle user name.", "It is what follows kaggle.com/ in your profile's address."
        )
    if not _SLUG.fullmatch(slug):
        raise UsageError(
            f"{slug!r} cannot be a data set's name in addresses.",
            "Use 6 to 50 small letters, digits and hyphens.",
        )


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds something that is not an earlier bundle's."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file.", "Choose another folder with --out.")
    there = {str(path.relative_to(out)) for path in _files_of(out)}
    if not there:
        return
    ours: set[str] = set()
    if BUNDLE_MANIFEST in there:
        ours = {*BundleManifest.read(out / BUNDLE_MANIFEST).files, BUNDLE_MANIFEST, DATASET_METADATA}
    elif EXTRA_LIST in there:
        ours = {*(pin.name for pin in read_pins(out / EXTRA_LIST)), EXTRA_LIST, DATASET_METADATA}
    foreign = sorted(there - ours)
    if foreign:
        listed = ", ".join(foreign[:_MAX_TOLD]) + (" ..." if len(foreign) > _MAX_TOLD else "")
        raise UsageError(
            f"{out} holds what no bundle put there: {listed}.",
            "Choose an empty or new folder with --out, or move these away.",
        )


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _commit_of(source: Path) -> tuple[str, tuple[str, ...]]:
    """Return the commit that a checkout stands at, and the files that differ from it."""
    if not (source / ".git").exists() or not (source / "setup.cfg").is_file():
        raise MachineError(
            f"A bundle is packed from a git checkout of the kit, and {source} is none.",
            "Clone the repository, install it from there with `pip install -e .`, and run this in it.",
        )
    commit = _git(source, "rev-parse", "HEAD").strip()
    status = _git(source, "status", "--porcelain", "--untracked-files=normal")
    return commit, tuple(line[3:] for line in status.splitlines())


def _git(source: Path, *arguments: str) -> str:
    try:
        done = run(["git", "-C", str(source), *arguments], timeout_s=None)
    except FileNotFoundError as error:
        raise MachineError("There is no git on this machine.", "Install it, then run this again.") from error
    if done.code != 0:
        said = (done.errors.strip().splitlines() or ["no message"])[-1]
        raise MachineError(f"git {arguments[0]} failed in {source}: {said}.", "Repair the checkout.")
    return done.output


@contextmanager
def _scratch_beside(out: Path) -> Iterator[tuple[Path, Path]]:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{out.name}.making-", dir=out.parent))
    except OSError as error:
        raise MachineError(
            f"{out.parent} cannot be written to: {error.strerror}.", "Choose another folder with --out."
        ) from error
    try:
        folder = scratch / "bundle"
        folder.mkdir(mode=0o755)
        yield scratch, folder
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _export(source: Path, tree: Path) -> None:
    archive = tree.with_suffix(".zip")
    _git(source, "archive", "--format=zip", f"--output={archive}", "HEAD")
    with zipfile.ZipFile(archive) as stream:
        stream.extractall(tree)


def _collect_wheels(tree: Path, scratch: Path, python: str, say: Callable[[str], None]) -> list[Path]:
    """Download or build every wheel, and bring those that were built here into one fixed form."""
    folder, requirements, tools = scratch / "wheels", scratch / "requirements.txt", scratch / "build.txt"
    _write(requirements, "\n".join(wheels_for(python)) + "\n")
    _write(tools, "\n".join(pinned("build")) + "\n")
    environ = {
        # Older releases of pip read the first for builds, too; newer ones only the second.
        "PIP_CONSTRAINT": str(tools),
        "PIP_BUILD_CONSTRAINT": str(tools),
        # 1980, the earliest that a zip file can state: a wheel follows from its source alone.
        "SOURCE_DATE_EPOCH": "315532800",
        "PYTHONHASHSEED": "0",
    }
    # Not from pip's cache: there may lie wheels that were compiled against some torch.
    command = ["wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", str(folder)]
    say("Building the kit's wheel ...")
    _pip([*command, str(tree)], environ)
    say(f"Getting {len(wheels_for(python))} packages; two are built from their source ...")
    _pip([*command, "--require-hashes", "--requirement", str(requirements)], environ)
    published = {line.rpartition("sha256:")[2] for line in wheels_for(python)}
    wheels = sorted(folder.glob("*.whl"))
    for wheel in wheels:
        if not wheel.name.endswith("-none-any.whl"):
            raise MachineError(
                f"{wheel.name} is not pure Python, and so would not fit every machine.",
                f"Pin another release or file of it in {PINS / 'wheels.txt'}.",
            )
        if BundledFile.of(wheel).sha256 not in published:
            normalise(wheel)
    return wheels


def _check_pins(wheels: Sequence[Path]) -> None:
    """Compare what was made with what the kit will install."""
    pins = set(read_pins(PINS / "files.txt"))
    made = [PinnedWheel.of(wheel) for wheel in wheels if not wheel.name.startswith(KIT.replace("-", "_"))]
    if wrong := [str(wheel) for wheel in made if wheel not in pins]:
        raise MachineError(
            f"What was built here is not what the kit knows: {'; '.join(wrong)}.",
            f"Where that is meant to be so, these are the lines for {PINS / 'files.txt'}.",
        )


def extra_wheels(
    report: Mapping[str, Any],
    requested: Sequence[str],
    there: Collection[str],
    environment: Mapping[str, str],
) -> tuple[str, ...]:
    """Return what has to be brought along for some requirements, as pip reads it, with hashes. Pure.

    Args:
        report: pip's installation report for them.
        requested: The requirements.
        there: Names of what the image and the bundle have, which is left out with all that it needs.
        environment: The markers' values on the target.
    """
    items = {canonicalize_name(item["metadata"]["name"]): item for item in report["install"]}
    waiting, lines = [Requirement(text) for text in requested], dict[str, str]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in lines or name in there or name not in items:
            continue
        item = items[name]
        sha256 = item["download_info"]["archive_info"]["hashes"]["sha256"]
        lines[name] = f"{name}=={item['metadata']['version']} --hash=sha256:{sha256}"
        for text in item["metadata"].get("requires_dist", ()):
            needed = Requirement(text)
            extras = ("", *requirement.extras)
            if needed.marker is None or any(
                needed.marker.evaluate({**environment, "extra": extra}) for extra in extras
            ):
                waiting.append(needed)
    return tuple(lines[name] for name in sorted(lines))


def _collect_extra(requested: Sequence[str], scratch: Path, python: str) -> None:
    """Fill ``scratch/extra`` with wheels and the list of them."""
    folder, report, constraints = scratch / "extra", scratch / "report.json", scratch / "constraints.txt"
    folder.mkdir(mode=0o755)
    own = [Requirement(line.partition(" --hash")[0]) for line in wheels_for(python)]
    image = [f"{name}=={version.partition('+')[0]}" for name, version in image_versions(python).items()]
    _write(constraints, "\n".join([*image, *map(str, own)]) + "\n")
    target = [
        "--only-binary=:all:", "--implementation=cp", f"--python-version={python}",
        "--platform=manylinux_2_28_x86_64", "--platform=manylinux2014_x86_64",
    ]  # fmt: skip
    where = ["--find-links", str(scratch / "bundle"), "--constraint", str(constraints)]
    dry = ["install", "--dry-run", "--ignore-installed", "--target", str(scratch / "never")]
    _pip([*dry, *target, *where, "--report", str(report), *requested], {})
    there = {canonicalize_name(item.name) for item in own} | set(image_versions(python))
    lines = extra_wheels(json.loads(report.read_bytes()), requested, there, target_environment(python))
    if not lines:
        listed = ", ".join(requested)
        raise MachineError(f"The image or the bundle has {listed} already.", "Leave --with out.")
    _write(scratch / "exactly.txt", "\n".join(lines) + "\n")
    fetch = ["download", "--no-deps", "--require-hashes", "--dest", str(folder)]
    _pip([*fetch, *target, "--requirement", str(scratch / "exactly.txt")], {})
    pins = [PinnedWheel.of(wheel) for wheel in sorted(folder.glob("*.whl"))]
    _write(folder / EXTRA_LIST, "".join(f"{pin}\n" for pin in pins))


def _pip(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    output = run_pip(arguments, environ=environ)
    if output is None:
        return
    if index_unreachable(output):
        raise MachineError(
            "The package index cannot be reached, and the packages come from there.",
            "Connect this machine to the Internet and run this again; nothing was changed.",
        )
    if "DO NOT MATCH THE HASHES" in output:
        raise MachineError(
            f"A package is not the file that {PINS / 'wheels.txt'} pins: "
            + " ".join(line.strip() for line in output.splitlines() if "sha256" in line),
            "Do not use it. Look whether the index or a proxy serves altered files.",
        )
    raise explain_failure(output, offline=False)


def _add_what_people_read(tree: Path, folder: Path, kit: Path, left: Sequence[str]) -> None:
    """Add configs, notebook and READMEs, which are in the kit's wheel, too, as plain files.

    The notebook takes no other kit than this one.
    """
    text = (tree / "notebooks" / NOTEBOOK).read_text(encoding="utf-8")
    before, unset, after = text.partition("KIT_SHA256 = None")
    assert unset, "the notebook has no parameter KIT_SHA256"
    _write(folder / NOTEBOOK, f'{before}KIT_SHA256 = \\"{kit_sha256(kit_files(kit))}\\"{after}')
    configs = tree / "configs"
    for path in sorted([*tree.glob("README*.md"), *configs.glob("README*.md"), *configs.rglob("*.py")]):
        target = folder / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    _write(folder / IMAGE_LIST, "".join(left))


def _write_metadata(folder: Path, title: str, handle: str) -> None:
    metadata = {"title": title, "id": handle, "licenses": [{"name": "other"}]}
    _write(folder / DATASET_METADATA, json.dumps(metadata, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _put_in_place(folder: Path, out: Path) -> None:
    """Rename the finished bundle into place; an earlier one is there until the moment of that."""
    if not out.exists():
        folder.rename(out)
        return
    aside = out.rename(folder.with_name(f"earlier-{folder.name}"))
    try:
        folder.rename(out)
    except OSError:
        aside.rename(out)
        raise
