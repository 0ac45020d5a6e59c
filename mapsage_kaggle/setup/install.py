"""Makes the running interpreter able to train, and proves it.

What is there stays as it is, above all the platform's torch, numpy and OpenCV; only what is missing is
added, from wheels attached as input where they suffice, else from the package index. Nothing is
ever compiled.

:func:`plan_install` decides and is pure; :func:`install` acts.
"""

from __future__ import annotations

import functools
import importlib
import os
import site
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.tags import Tag, sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from mapsage_kaggle.checkpoints.manifest import file_sha256
from mapsage_kaggle.checks import MIN_TORCH, conflict_remedy, stack_conflicts
from mapsage_kaggle.config.modules import find_config
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.kit import own_home
from mapsage_kaggle.machine import STACK
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import KagglePaths, bundled
from mapsage_kaggle.processes import (
    ChildError,
    clean_environment,
    in_background,
    module_command,
    run_for_json,
    warm_up,
)
from mapsage_kaggle.setup.pip import explain_failure, run_pip
from mapsage_kaggle.setup.wheels import EXTRA_LIST, PINS, REMEDY, prove_wheels, read_pins

LIBRARIES: tuple[str, ...] = (
    # The kit's own core; setup.cfg has the reasons of the bounds.
    "numpy>2",
    "Pillow>=10.1",
    "Jinja2>=3.1",
    "matplotlib>=3.9",
    "packaging>=22.0",
    "psutil>=5.9",
    # What mmengine, mmcv and mmseg ask for.
    "addict",
    "ftfy",
    "prettytable",
    "pyyaml",
    "regex",
    "rich",
    "scipy",
    "termcolor",
    "yapf",
    # torch.utils.cpp_extension, which mmengine imports, imports it.
    "setuptools",
)
"""All that the stack needs besides torch and OpenCV. Spelt out, and the stack itself installed without
its dependencies, because it asks for ``opencv-python`` even where another build of OpenCV is there: a
second build overwrites the first one's files. A test compares this with the stack's own metadata."""

OPENCV = (
    "opencv-python",
    "opencv-contrib-python",
    "opencv-python-headless",
    "opencv-contrib-python-headless",
)
"""Builds of OpenCV, all imported as ``cv2``. Any of them will do."""
OPENCV_IF_MISSING = "opencv-python-headless"
"""Needs no libGL, which a bare machine lacks."""

MODULES: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "cv2": OPENCV,
    "PIL": ("pillow",),
    "scipy": ("scipy",),
    "matplotlib": ("matplotlib",),
    "yaml": ("pyyaml",),
    "mmengine": ("onedl-mmengine",),
    "mmcv": ("onedl-mmcv",),
    "mmseg": ("onedl-mmsegmentation",),
}
"""Import names, and the distributions that may provide each."""

PROOF_TIMEOUT_S = 180.0
TRIES = 2
_MAX_TOLD = 5

_PASSING = ("Read timed out", "Connection reset", "Connection aborted", "502", "503", "IncompleteRead")
"""Words of failures that may be gone at the next try."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstallPlan:
    """What is to be installed, and from where.

    Attributes:
        libraries: Requirements to install with all that they need.
        stack: Requirements of the stack itself, to install without what they ask for.
        constraints: ``name==version`` of everything present, so that pip cannot change it.
        wheels: Proven wheels to install, exactly these.
        uncovered: Names for which no proven wheel fits this interpreter: the index is asked.
    """

    libraries: tuple[str, ...] = ()
    stack: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    wheels: tuple[Path, ...] = ()
    uncovered: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.libraries or self.stack)


@dataclass(frozen=True, kw_only=True, slots=True)
class InstallReport:
    """What was done.

    Attributes:
        added: ``name==version`` of what was not there before.
        changed: ``name old -> new`` of what had to change.
        kept: ``name==version`` of torch, numpy and OpenCV, which stayed.
        restart: Import names that this process holds in another version than is now on disk. Where
            there are any, the kernel must restart before training.
        python_path: The folder that a child needs on ``PYTHONPATH`` to import the kit, which is
            already set for children of this process; None where the kit itself is installed.
        proof: What the fresh process saw: classes, parameters, versions; None if it was not asked, or is
            not done.
        seconds: How long all of it took.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    kept: tuple[str, ...]
    restart: tuple[str, ...]
    python_path: Path | None
    proof: Mapping[str, Any] | None
    seconds: float


def plan_install(
    installed: Mapping[str, str],
    wheels: Sequence[Path],
    online: bool,
    *,
    tags: Collection[Tag] | None = None,
) -> InstallPlan:
    """Decide what to install. Pure.

    ``wheels`` are proven; those for other interpreters are passed over.

    Raises:
        MachineError: torch is missing or too old, upstream packages are in the way, or the attached
            wheels do not suffice and the index may not be asked.
    """
    _refuse_torch(installed.get("torch"))
    conflicts = stack_conflicts(installed)
    if conflicts:
        raise MachineError(
            Message(
                "{names} of upstream are installed. They have the same import names as the kit's, and "
                "cannot resume on today's torch.",
                ", ".join(conflicts),
            ),
            conflict_remedy(installed),
        )
    usable = _usable(wheels, frozenset(sys_tags()) if tags is None else tags)
    libraries = [text for text in LIBRARIES if not _met(Requirement(text), installed)]
    if not any(name in installed for name in OPENCV):
        libraries.append(next((name for name in OPENCV if name in usable), OPENCV_IF_MISSING))
    stack = [f"{name}=={version}" for name, version in STACK.items() if installed.get(name) != version]
    attached = {name: str(version) for name, (version, _) in usable.items()}
    uncovered = tuple(text for text in (*libraries, *stack) if not _met(Requirement(text), attached))
    if uncovered and not online:
        raise MachineError(
            Message(
                "The attached wheels ({count} found) lack {names} for this Python, and there is no "
                "Internet to get them from.",
                len(wheels),
                ", ".join(uncovered),
            ),
            "Attach the data set that `mapsage-kaggle bundle` makes, or turn Internet on in the settings.",
        )
    changing = {canonicalize_name(Requirement(text).name) for text in (*libraries, *stack)}
    return InstallPlan(
        libraries=tuple(libraries),
        stack=tuple(stack),
        constraints=tuple(_constraints(installed, changing)),
        # What is missing, and what those need in turn.
        wheels=tuple(path for name, (_, path) in usable.items() if name in changing or name not in installed),
        uncovered=uncovered,
    )


def _refuse_torch(version: str | None) -> None:
    if version is None:
        raise MachineError(
            "torch is not installed, and the kit does not choose a build of it for you.",
            "On Kaggle, use an environment that has it; elsewhere, `pip install torch`.",
        )
    if Version(version).release[:2] < MIN_TORCH:
        raise MachineError(
            Message(
                "torch {version} is older than {least}, the first that loads checkpoints safely.",
                version,
                ".".join(map(str, MIN_TORCH)),
            ),
            "Choose a newer notebook environment.",
        )


def _met(requirement: Requirement, there: Mapping[str, str]) -> bool:
    version = there.get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _usable(wheels: Sequence[Path], tags: Collection[Tag]) -> dict[str, tuple[Version, Path]]:
    """Return the newest wheel of each distribution that this interpreter can use."""
    found: dict[str, tuple[Version, Path]] = {}
    for path in wheels:
        try:
            name, version, _, wheel_tags = parse_wheel_filename(path.name)
        except (InvalidWheelFilename, InvalidVersion):
            continue
        if wheel_tags.isdisjoint(tags):
            continue
        if name not in found or version > found[name][0]:
            found[name] = (version, path)
    return found


def _constraints(installed: Mapping[str, str], changing: Collection[str]) -> Iterator[str]:
    for name, version in sorted(installed.items()):
        if name in changing:
            continue
        try:
            Version(version)
        except InvalidVersion:
            continue  # pip can neither read nor change it
        yield f"{name}=={version}"


def must_restart(loaded: Mapping[str, str], installed: Mapping[str, str]) -> tuple[str, ...]:
    """Return the import names that are loaded in another version than is installed. Pure."""
    stale = []
    for module, distributions in MODULES.items():
        on_disk = [installed[name] for name in distributions if name in installed]
        if module in loaded and not any(_same_release(loaded[module], version) for version in on_disk):
            stale.append(module)
    return tuple(stale)


def _same_release(module_version: str, distribution_version: str) -> bool:
    """Compare what a module says with what its distribution says.

    Only as far as the module goes: cv2 says 4.12.0 where its distribution is 4.12.0.88. Local parts
    (``+cu128``) are left out.
    """
    try:
        module, distribution = Version(module_version), Version(distribution_version)
    except InvalidVersion:
        return module_version == distribution_version
    if module.pre != distribution.pre:
        return False
    return distribution.release[: len(module.release)] == module.release


def install(
    *,
    inputs: Path | None = None,
    offline: bool | None = None,
    quiet: bool = False,
    prove: bool = True,
    language: str = "en",
    config: Path | None = None,
    extra_wheels: str | None = None,
    trains: str | Path | None = None,
) -> InstallReport:
    """Make the running interpreter able to train, and prove it in a fresh process.

    Does nothing but prove where all is there already, so that it may be called in every session. Before
    training the proof then goes on in the background, and :func:`finish_proof` waits for it.

    Args:
        inputs: Where wheels are looked for; Kaggle's input folder by default.
        offline: True never asks the package index; False asks it even where the attached wheels seem
            to suffice; None asks it only if they do not.
        quiet: Print nothing.
        prove: Build a model and run it in a fresh process.
        language: Of what is printed and raised: ``en`` or ``zh``.
        config: The config whose model proves it; the kit's EarthVQA config by default.
        extra_wheels: ``owner/slug`` or the path of a folder that ``bundle --with`` has made: what it holds
            is installed as well.
        trains: The config that is to be trained, looked for before anything is installed.

    Raises:
        ConfigError: There is no such config.
        MachineError: It cannot be done, or the proof failed; the message says what to do.
        UsageError: The language is neither of the two.
    """
    with Words(language).refusing():
        if trains is not None:
            find_config(trains)
        voice = _Voice(Words(language), quiet=quiet)
        return _install(
            inputs, offline=offline, prove=prove, config=config, extra_wheels=extra_wheels, voice=voice,
            may_go_on=trains is not None,
        )  # fmt: skip


def _install(
    inputs: Path | None,
    *,
    offline: bool | None,
    prove: bool,
    config: Path | None,
    extra_wheels: str | None,
    voice: _Voice,
    may_go_on: bool,
) -> InstallReport:
    global _going_on
    started = time.monotonic()
    before = installed_versions()
    plan = plan_install(before, (), online=True)
    paths = KagglePaths.from_environment()
    inputs = paths.input if inputs is None else inputs
    if prove and plan.empty and extra_wheels is None:
        warm_up(paths.temp)
    if not plan.empty:
        with tempfile.TemporaryDirectory(prefix="mapsage-install-") as folder:
            wheels = _attached_wheels(inputs, Path(folder) / "wheels", voice)
            plan = plan_install(before, wheels, online=not offline)
            _carry_out(plan, Path(folder), voice, may_ask_index=not offline, prefer_index=offline is False)
    else:
        voice.say("present", stack=", ".join(f"{name} {version}" for name, version in STACK.items()))
    if extra_wheels is not None:
        with tempfile.TemporaryDirectory(prefix="mapsage-install-") as folder:
            _add_extra(extra_wheels, inputs, Path(folder), voice)
    after = installed_versions()
    kept = tuple(
        f"{name}=={after[name]}"
        for name in ("torch", "numpy", *OPENCV)
        if name in after and before.get(name) == after[name]
    )
    if not plan.empty and kept:
        voice.say("kept", kept=", ".join(kept))
    python_path = share_with_children()
    restart = must_restart(loaded_versions(), after)
    proof = None
    if prove:
        warm_up(paths.temp)  # which it may be already, where nothing had to be added
        voice.say("proving")
        config = bundled("configs") / "train_earthvqa_kaggle.py" if config is None else config
        say = functools.partial(voice.say_proved, config, started)
        if may_go_on and plan.empty and extra_wheels is None and not restart:
            # So that a session may look at its data meanwhile.
            _going_on = in_background(functools.partial(prove_in_child, config)), say
        else:
            proof = prove_in_child(config)
            say(proof)
    else:
        voice.say("added", seconds=time.monotonic() - started)
    if restart:
        voice.say("restart", modules=", ".join(restart))
    return InstallReport(
        added=tuple(f"{name}=={version}" for name, version in after.items() if name not in before),
        changed=tuple(
            f"{name} {before[name]} -> {version}"
            for name, version in after.items()
            if before.get(name, version) != version
        ),
        kept=kept,
        restart=restart,
        python_path=python_path,
        proof=proof,
        seconds=time.monotonic() - started,
    )


def installed_versions() -> dict[str, str]:
    from importlib import metadata

    importlib.invalidate_caches()
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        # The first on the path is the one that is imported. A broken one has no name.
        if name:
            found.setdefault(canonicalize_name(name), distribution.version)
    return dict(sorted(found.items()))


def loaded_versions() -> dict[str, str]:
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in MODULES}
    return {name: str(version) for name, version in versions.items() if version is not None}


def share_with_children() -> Path | None:
    """Make the kit importable in processes that a person starts from this one, where only this one can.

    That is so where its code is attached as a data set: a copy of it then, without what lies beside it.
    Returns the folder that was added to ``PYTHONPATH``, or None where the kit is installed.
    """
    home = own_home()
    lasting = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    lasting.add(Path(site.getusersitepackages()).resolve())
    # An editable install is found by a finder of its own, in every process, and is on no path.
    if home in lasting or home not in {Path(path).resolve() for path in sys.path}:
        return None
    os.environ["PYTHONPATH"] = clean_environment()["PYTHONPATH"]
    return Path(os.environ["PYTHONPATH"].split(os.pathsep)[0])


def prove_in_child(config: Path) -> dict[str, Any]:
    """Import the stack, build a config's model and run it on the CPU, in a fresh process.

    Raises:
        MachineError: That failed, or took more than ``PROOF_TIMEOUT_S``.
    """
    environ = clean_environment() | {"CUDA_VISIBLE_DEVICES": ""}
    command = module_command("mapsage_kaggle.engine.proof", str(config))
    try:
        seen: dict[str, Any] = run_for_json(command, timeout_s=PROOF_TIMEOUT_S, env=environ)
    except ChildError as error:
        if error.timed_out:
            raise MachineError(
                Message(
                    "The packages are installed, but building the model of {config} took more than "
                    "{seconds} s.",
                    config,
                    f"{PROOF_TIMEOUT_S:.0f}",
                ),
                "The machine may be overloaded: try again.",
            ) from error
        shown = "\n".join(error.words)
        raise MachineError(
            Message(
                "The packages are installed, but the model of {config} cannot be built and run in a "
                "fresh process (exit code {code}):\n{shown}",
                config,
                error.code,
                shown,
            ),
            "\nIf the last line names a package, its version here does not go together with the others.",
        ) from error
    return seen


_going_on: tuple[Future[dict[str, Any]], Callable[[Mapping[str, Any]], None]] | None = None
"""The proof that goes on in the background, if one does, and what says what it saw."""


def finish_proof() -> None:
    """Wait for the proof that :func:`install` has left going on, if it has, and say what it saw.

    Raises:
        MachineError: It failed.
    """
    global _going_on
    if _going_on is not None:
        seen, say = _going_on
        say(seen.result())
        _going_on = None


class _Voice:
    """Says what happens, in one language or not at all."""

    def __init__(self, words: Words, *, quiet: bool) -> None:
        self._words = words
        self._quiet = quiet

    def say(self, key: str, **values: Any) -> None:
        if not self._quiet:
            print(self._words(f"install_{key}", **values), flush=True)

    def say_proved(self, config: Path, started: float, proof: Mapping[str, Any]) -> None:
        self.say(
            "proved",
            config=config.name,
            parameters=proof["parameters"] / 1e6,
            classes=proof["classes"],
            seconds=time.monotonic() - started,
        )

    def word(self, key: str) -> str:
        return self._words(f"install_{key}")


def _attached_wheels(inputs: Path, scratch: Path, voice: _Voice) -> tuple[Path, ...]:
    """Return the attached wheels that the kit knows, proven; what else there is is named."""
    found = prove_wheels(inputs, read_pins(PINS / "files.txt"), scratch)
    if found.proven:
        voice.say("proven", count=len(found.proven))
    # The kit itself has been chosen, and is imported, by now.
    others = [
        f"{path} ({problem})" if problem else str(path)
        for path, problem in found.others.items()
        if not path.name.startswith("mapsage_kaggle-")
    ]
    if others:
        more = f" (+{len(others) - _MAX_TOLD})" if len(others) > _MAX_TOLD else ""
        voice.say("ignored", what=", ".join(others[:_MAX_TOLD]) + more)
    return found.proven


def _carry_out(
    plan: InstallPlan, scratch: Path, voice: _Voice, *, may_ask_index: bool, prefer_index: bool
) -> None:
    """Install what the plan says: the libraries before the stack, so that a failure leaves no half of it."""
    libraries, stack = plan.libraries, plan.stack
    if plan.wheels and not prefer_index:
        voice.say("adding", what=", ".join(map(_distribution, plan.wheels)), source=voice.word("wheels"))
        output = install_exactly(plan.wheels, scratch)
        if output is not None:
            if not may_ask_index:
                raise explain_failure(output, offline=True)
            voice.say("fallback")
        else:
            libraries = tuple(text for text in libraries if text in plan.uncovered)
            stack = tuple(text for text in stack if text in plan.uncovered)
    for requirements in (libraries, stack):
        if requirements:
            voice.say("adding", what=", ".join(requirements), source=voice.word("index"))
    constraints = scratch / "constraints.txt"
    constraints.write_text("\n".join(plan.constraints) + "\n")
    command = ["install", "--only-binary=:all:"]
    if libraries:
        _online([*command, "--constraint", str(constraints), *libraries], voice)
    if stack:
        built = _build_wheels(stack, scratch / "built", voice)
        _online([*command, "--no-deps", *stack, "--no-index", "--find-links", str(built)], voice)


def install_exactly(wheels: Sequence[Path], scratch: Path) -> str | None:
    """Install these files and nothing else; return None if it succeeded, else pip's output.

    They lie in one folder; ``scratch`` is for the list that pip takes, with the hash of each.
    """
    lines = [f"{_distribution(wheel)} --hash=sha256:{file_sha256(wheel)}" for wheel in wheels]
    requirements = scratch / "exactly.txt"
    requirements.write_text("\n".join(lines) + "\n")
    return run_pip(
        [
            "install", "--no-index", "--no-deps", "--only-binary=:all:", "--require-hashes",
            "--find-links", str(wheels[0].parent), "--requirement", str(requirements),
        ],
        environ={"PIP_FIND_LINKS": ""},
    )  # fmt: skip


def _distribution(wheel: Path) -> str:
    name, version, _, _ = parse_wheel_filename(wheel.name)
    return f"{name}=={version}"


def _add_extra(named: str, inputs: Path, scratch: Path, voice: _Voice) -> None:
    """Install what a folder holds that ``bundle --with`` has made, and that the notebook names."""
    owner, _, slug = named.partition("/")
    places = (Path(named), inputs / "datasets" / owner / slug, inputs / (slug or owner))
    folder = next((place for place in places if (place / EXTRA_LIST).is_file()), None)
    if folder is None:
        raise MachineError(
            Message(
                "EXTRA_WHEELS names {named}, and there is no {file} in {places}.",
                named,
                EXTRA_LIST,
                ", ".join(map(str, places)),
            ),
            "Attach the second data set that `mapsage-kaggle bundle --with` makes, or name it as owner/slug.",
        )
    pins = read_pins(folder / EXTRA_LIST)
    found = prove_wheels(folder, pins, scratch / "extra")
    if len(found.proven) < len(pins):
        lacking = sorted({pin.name for pin in pins} - {path.name for path in found.proven})
        raise MachineError(
            Message(
                "{folder} is damaged: {names} is missing or is not what its list says.",
                folder,
                ", ".join(lacking[:_MAX_TOLD]),
            ),
            REMEDY,
        )
    installed = {f"{name}=={version}" for name, version in installed_versions().items()}
    lacking_here = [path for path in found.proven if _distribution(path) not in installed]
    if not lacking_here:
        return
    voice.say("extra", what=", ".join(map(_distribution, lacking_here)), folder=folder)
    output = install_exactly(lacking_here, scratch)
    if output is not None:
        raise explain_failure(output, offline=True)


def _online(arguments: Sequence[str], voice: _Voice) -> None:
    for left in reversed(range(TRIES)):
        output = run_pip(arguments)
        if output is None:
            return
        if left and any(phrase in output for phrase in _PASSING):
            voice.say("again")
            continue
        raise explain_failure(output, offline=False)


def _build_wheels(requirements: Sequence[str], folder: Path, voice: _Voice) -> Path:
    """Get pure-Python wheels of the stack, some of which is published as source only.

    onedl-mmcv's build compiles only where it can import torch, and pip's build isolation keeps torch
    out of sight, so that its wheel comes out in seconds.
    """
    # Not from pip's cache: there may lie a wheel that was compiled against another torch.
    command = ["wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", str(folder)]
    _online([*command, *requirements], voice)
    for wheel in folder.glob("*.whl"):
        if not wheel.name.endswith("-none-any.whl"):
            raise MachineError(
                Message(
                    "Building {names} gave {wheel}, which is not pure Python.",
                    ", ".join(requirements),
                    wheel.name,
                ),
                "Turn pip's build isolation on again: `pip config unset global.no-build-isolation`.",
            )
    return folder
