"""The commands. Each parses its arguments, calls one function, and prints what came back."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from mapsage_kaggle.errors import (
    EXIT_CHECKPOINT,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    EXIT_USAGE,
    MapsageError,
)
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import visible_json, visible_lines
from mapsage_kaggle.training.options import add_argument, add_arguments, options_from

if TYPE_CHECKING:
    from mapsage_kaggle.jobs.subject import ModelOptions

_Options = TypeVar("_Options")
Command = Callable[[argparse.Namespace], int]
_Add = Callable[[str, Command, str], argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see the table of exit codes in the README."""
    parsed = build_parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        return command(parsed)
    except MapsageError as error:
        _say(f"mapsage-kaggle: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        _say("mapsage-kaggle: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mapsage-kaggle",
        description="Make a chain of Kaggle sessions behave like one uninterrupted training run.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command, help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text)
        sub.set_defaults(command=command)
        return sub

    for add_some in (_add_checks, _add_training, _add_evaluation, _add_predict, _add_export, _add_chain):
        add_some(add)
    return parser


def _add_checks(add: _Add) -> None:
    _json(add("doctor", _doctor, "Check this machine: Python, packages, GPU, Internet, disk, time."))
    tester = add("selftest", _selftest, "Find out whether what is promised holds on this machine.")
    tester.add_argument(
        "--out", type=Path, metavar="FILE", help="(selftest.json, in the output folder or here)"
    )
    tester.add_argument("--only", action="append", default=[], metavar="NAME", help="only this; repeatable")
    tester.add_argument("--limit", metavar="TIME", help="how long it may take (5m, with a GPU 10m)")
    _json(tester)
    installer = add("install", _install, "Make this Python able to train, keeping its torch.")
    installer.add_argument("--offline", action="store_true", default=None, help="use attached wheels only")

    scan = add("scan", _scan, "List the checkpoints below a folder (default: the attached inputs).")
    scan.add_argument("folder", nargs="?", type=Path, metavar="DIR")
    _json(scan)

    verify = add("verify", _verify, "Judge a checkpoint file without running what is in it.")
    verify.add_argument("file", type=Path, metavar="FILE")
    verify.add_argument("--config", type=Path, metavar="CFG", help="also compare with this config")
    _code(verify)
    _json(verify)


def _add_training(add: _Add) -> None:
    patch = add("patch", _patch, "Show what would change in a config to run it here.")
    patch.add_argument("config", type=Path, metavar="CONFIG")
    add_arguments(patch, planning=True)
    patch.add_argument("--out", type=Path, metavar="FILE", help="write the effective config")

    train = add("train", _train, "Train until the end, or until the session has to stop; then hand over.")
    train.add_argument("config", type=Path, metavar="CONFIG")
    add_arguments(train)

    report = add("report", _report, "Draw the report of a run from its work dirs.")
    report.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    report.add_argument("--language", default="en", metavar="en|zh", help="of its words (en)")
    report.add_argument("--out", type=Path, metavar="FOLDER", help="where to (the newest work dir)")

    auditor = add("audit", _audit, "Check whether a run's sessions are one chain, and what that proves.")
    auditor.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    _json(auditor)


def _add_evaluation(add: _Add) -> None:
    evaluator = add(
        "evaluate",
        _evaluate,
        "Measure a trained model: scores by class, how sure they are, and a comparison.",
    )
    evaluator.add_argument("config", type=Path, metavar="CONFIG")
    evaluator.add_argument(
        "checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="(the run's best, else its newest)"
    )
    add_argument(evaluator, "run")
    evaluator.add_argument("--against", type=Path, metavar="OTHER", help="compare with this checkpoint")
    _looks(evaluator)
    _overrides(evaluator)
    _code(evaluator)
    _json(evaluator)

    averager = add(
        "average", _average, "Average the weights of checkpoints of one run, and measure what it gave."
    )
    averager.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    averager.add_argument("--out", type=Path, required=True, metavar="FILE", help="such as averaged.pth")
    averager.add_argument("--config", type=Path, metavar="CFG", help="(config.py beside the first)")
    averager.add_argument(
        "--batch-norm-images", type=int, default=256, metavar="N", help="training images for BatchNorm (256)"
    )
    averager.add_argument("--no-evaluate", action="store_true", help="write it and measure nothing")
    _looks(averager)
    _overrides(averager)
    _code(averager)
    _json(averager)


def _add_predict(add: _Add) -> None:
    predict = add("predict", _predict, "Make maps from images, folders of images and large scenes.")
    _model(predict)
    option = predict.add_argument
    option("images", nargs="*", type=Path, metavar="IMAGES", help="images, folders of images")
    option("--out", type=Path, required=True, metavar="DIR", help="the folder to write below")
    option("--submission", action="store_true", help="EarthVQA's test split, packed and checked")
    option("--overlay", action="store_true", help="also the image with its classes in colour")
    option("--probabilities", action="store_true", help="also a band for each class (GeoTIFF)")
    option("--polygons", action="store_true", help="also polygons (GeoPackage)")
    option("--min-area", type=float, default=0.0, metavar="M2", help="polygons from so many m² on")
    option(
        "--window", type=int, metavar="N", help="side of the windows (1024, over images above 2048 x 2048)"
    )
    option("--overlap", type=int, metavar="N", help="of windows, in pixels (a quarter)")
    option("--scale", type=float, metavar="F", help="see images at F times their own size")
    option("--gsd", type=float, metavar="METRES", help="that a pixel of the images covers")
    option("--trained-gsd", type=float, metavar="METRES", help="the same of the training images")
    option("--half", action="store_true", help="in half precision: faster on a GPU, a few pixels differ")
    option("--bands", metavar="R,G,B", help="red, green, blue, and other bands, from 1")
    option("--value-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="what becomes 0 and 255")
    _json(predict)


def _add_export(add: _Add) -> None:
    exporter = add(
        "export", _export, "Hand a model on: safetensors, ONNX, torch.export and a card, each form compared."
    )
    option = exporter.add_argument
    option("config", type=Path, metavar="CONFIG")
    option(
        "checkpoint", nargs="?", type=Path, metavar="CHECKPOINT",
        help="by default the run's best, else its newest",
    )  # fmt: skip
    add_argument(exporter, "run")
    option("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    option("--work-dir", type=Path, metavar="DIR", help="where the run lies")
    option(
        "--form", action="append", choices=("safetensors", "onnx", "torch"),
        help="only these; safetensors always (all)",
    )  # fmt: skip
    option(
        "--images", nargs="+", default=[], type=Path, metavar="FILE", help="compare on these (validation set)"
    )
    option("--licence", default="Other", metavar="NAME", help="such as CC-BY-NC-SA-4.0 (Other)")
    option("--owner", metavar="OWNER", help="your Kaggle user name, for the upload")
    option("--slug", default="mapsage-segformer", metavar="SLUG", help="the model's name on Kaggle")
    option("--threads", type=int, metavar="N", help="CPU threads (all cores)")
    _overrides(exporter)
    _code(exporter)


def _add_chain(add: _Add) -> None:
    bundler = add(
        "bundle", _bundle, "Pack the kit and the wheels that Kaggle lacks, to upload as a data set."
    )
    option = bundler.add_argument
    option("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    option("--owner", metavar="OWNER", help="your Kaggle user name, for the data set's id")
    option(
        "--with", action="append", default=[], dest="extra", metavar="REQUIREMENT",
        help="pack this as well, into a second folder beside DIR",
    )  # fmt: skip
    option("--slug", default="mapsage-kaggle", metavar="SLUG", help="the data set's name there")
    option("--python-version", default="3.12", metavar="X.Y", help="the Python of Kaggle's image (3.12)")

    _add_relay(
        add("relay", _relay, "Run the chain of sessions on Kaggle from here, until the run is complete.")
    )

    demo = add("demo", _demo, "Run the whole chain on this machine: generated scenes, three short sessions.")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where to (./demo)")


def _add_relay(relay: argparse.ArgumentParser) -> None:
    option = relay.add_argument
    option(
        "config", metavar="CONFIG|status|cancel",
        help="one of the kit's own, or its path on Kaggle; status: what is there; cancel: end its session",
    )  # fmt: skip
    option("--owner", required=True, metavar="OWNER", help="your user name on Kaggle")
    option("--slug", required=True, metavar="SLUG", help="the notebook, as in its address")
    option(
        "--dataset", action="append", default=[], dest="datasets", metavar="OWNER/SLUG",
        help="a data set for every session: the kit's, the images'; may be repeated",
    )  # fmt: skip
    option(
        "--checkpoint-dataset", metavar="OWNER/SLUG|none",
        help="your data set for checkpoints (OWNER/SLUG-checkpoints)",
    )  # fmt: skip
    option(
        "--transport", default="auto", choices=("auto", "self", "pingpong", "dataset"),
        help="how checkpoints are handed on (auto: two notebooks in turn, or the data set)",
    )  # fmt: skip
    option("--machine", default="NvidiaTeslaT4", metavar="NAME|none", help="Kaggle's name of it")
    option("--no-internet", action="store_false", dest="internet", help="sessions without Internet")
    option("--until", type=int, metavar="N", help="stop the relay at this iteration")
    option("--extend-to", type=int, metavar="N", help="a new, later end for a run that is complete")
    option("--max-sessions", type=int, metavar="N", help="push no more sessions than this")
    option("--session-limit", default="12h", metavar="TIME", help="a session's life (12h)")
    option("--reserve", default="10m", metavar="TIME", help="what is kept free at its end (10m)")
    option("--state", type=Path, metavar="DIR", help="where the journal lies (./relay/SLUG)")
    option("--poll", default="2m", metavar="TIME", help="between two looks (2m); below 1m a rehearsal")
    option("--once", action="store_true", help="one step, then end; for schedulers")
    option("--again", action="store_true", help="forget the failures so far")
    option("--from-nothing", action="store_true", help="with --again: do without what cannot be found")
    option("--dry-run", action="store_true", help="print the plan; push nothing, write nothing")
    option("--log", type=Path, metavar="FILE", help="add every line to a file as well")
    option(
        "--notify", nargs="?", const="end", choices=("end", "session"),
        help="send a message at the end, or at each session's; to the address in MAPSAGE_KAGGLE_NOTIFY",
    )  # fmt: skip
    _json(relay)
    _overrides(relay)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _looks(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--split", choices=("val", "test"), default="val", help="whose images (val)")
    option("--whole", action="store_true", help="whole images (as the config's test_cfg)")
    option("--window", type=int, metavar="N", help="slide windows of this side, in pixels")
    option("--stride", type=int, metavar="N", help="from window to window (two thirds)")
    option("--window-batch", type=int, default=4, metavar="N", help="windows at a time (4)")
    option(
        "--flips", nargs="+", default=(), choices=("horizontal", "vertical", "both"),
        help="mirrored views too",
    )  # fmt: skip
    option("--scales", nargs="+", type=float, default=(1.0,), metavar="X", help="average over sizes (1.0)")
    option("--resamples", type=int, default=2000, metavar="N", help="draws of the bootstrap (2000)")
    option("--work-dir", type=Path, metavar="DIR", help="where the run lies")
    _machine(parser)


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    _machine(parser)
    parser.add_argument(
        "--no-fast", action="store_false", dest="fast", help="no quicker parts in place of stock ones"
    )
    _overrides(parser)
    _code(parser)


def _machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run (auto)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (all cores)")


def _code(parser: argparse.ArgumentParser) -> None:
    for name in ("code", "pass_env"):
        add_argument(parser, name)


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="set a config key"
    )


# -- commands


def _doctor(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.checks import preflight, to_json
    from mapsage_kaggle.display.text import checks_text
    from mapsage_kaggle.machine import survey
    from mapsage_kaggle.paths import KagglePaths

    paths = KagglePaths.from_environment()
    checks = preflight(paths, survey(paths))
    document = to_json(checks)
    _show(arguments, document, checks_text(checks))
    return EXIT_DONE if document["ok"] else EXIT_MACHINE


def _selftest(arguments: argparse.Namespace) -> int:
    from contextlib import redirect_stdout

    from mapsage_kaggle.notebook.selftest import selftest

    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        test = selftest(only=arguments.only, limit=arguments.limit, out=arguments.out)
    if arguments.json:
        _print_json(test.to_json())
    return test.exit_code


def _install(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.setup.install import install

    install(offline=arguments.offline)
    return EXIT_DONE


def _scan(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.checkpoints.scan import scan
    from mapsage_kaggle.display.text import scan_text
    from mapsage_kaggle.paths import KagglePaths

    report = scan(arguments.folder or KagglePaths.from_environment().input)
    _show(arguments, report.to_json(), scan_text(report))
    return EXIT_DONE


def _verify(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.checkpoints.inspect import inspect
    from mapsage_kaggle.checkpoints.manifest import manifest_sha256
    from mapsage_kaggle.display.text import inspection_text

    shapes, classes = None, None
    if arguments.config is not None:
        from mapsage_kaggle.config.modules import code_places
        from mapsage_kaggle.config.reading import read_config
        from mapsage_kaggle.paths import KagglePaths
        from mapsage_kaggle.training.shapes import look_at_model

        paths = KagglePaths.from_environment()
        code = code_places(arguments.config, paths.input, tuple(map(Path, arguments.code)))
        cfg = read_config(arguments.config)
        model = look_at_model(cfg, arguments.config, paths.temp, code, arguments.pass_env)
        shapes, classes = model.shapes, model.classes
    verdict = inspect(
        arguments.file, shapes=shapes, classes=classes, manifest_sha256=manifest_sha256(arguments.file)
    )
    _show(arguments, verdict.to_json(), inspection_text(verdict))
    return EXIT_CHECKPOINT if verdict.verdict == "rejected" else EXIT_DONE


def _patch(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.config.patch import apply_patch
    from mapsage_kaggle.paths import replace_file
    from mapsage_kaggle.training.prepare import discover, prepare

    prepared = prepare(
        discover(options_from(arguments.config, vars(arguments)), record_refusals=False), to_train=False
    )
    _say(prepared.patch.diff(), end="")
    for warning in prepared.patch.warnings:
        _say(f"warning: {warning}", file=sys.stderr)
    if arguments.out is not None:
        replace_file(arguments.out, apply_patch(prepared.discovery.cfg, prepared.patch).pretty_text)
    return EXIT_DONE


def _train(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.display.text import TextSink, outcome_text, plan_text
    from mapsage_kaggle.paths import KagglePaths
    from mapsage_kaggle.processes import warm_up
    from mapsage_kaggle.training.handle import TrainingHandle, exit_code_of
    from mapsage_kaggle.training.prepare import discover, prepare

    options = options_from(arguments.config, vars(arguments))
    warm_up(KagglePaths.from_environment().temp, threads=options.threads)
    prepared = prepare(discover(options, on_wait=print))
    _say(plan_text(prepared))
    handle = TrainingHandle(prepared, [TextSink(max_iters=prepared.patch.max_iters)])
    signal.signal(signal.SIGTERM, lambda *_: handle.stop())
    record = handle.start().wait()
    _say(outcome_text(record, prepared.work_dir))
    return exit_code_of(record, interrupted=handle.interrupted)


def _report(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.display.report import write_report
    from mapsage_kaggle.display.text import run_text

    page = write_report(arguments.folders, out=arguments.out, language=arguments.language)
    _say(run_text(arguments.folders, language=arguments.language))
    _say(page)
    return EXIT_DONE


def _audit(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.display.audit import audit_folders, audit_text

    found = audit_folders(arguments.folders)
    _show(arguments, found.to_json(), audit_text(found))
    return EXIT_DONE if found.chain == "unbroken" else EXIT_CHECKPOINT


def _evaluate(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.display.evaluated import evaluation_text
    from mapsage_kaggle.display.jobs import JobProgress
    from mapsage_kaggle.jobs.evaluate import EvaluationOptions, evaluate
    from mapsage_kaggle.jobs.subject import open_subject

    subject = open_subject(_model_options(arguments, needs_data=True))
    options = _picked(EvaluationOptions, arguments)
    with JobProgress("images") as progress:
        found = evaluate(subject, options, against=arguments.against, on_event=progress.take)
    document = found.to_json()
    _show(arguments, document, f"{evaluation_text(document)}\n{found.file}")
    return EXIT_DONE


def _average(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.display.evaluated import family_text
    from mapsage_kaggle.display.jobs import JobProgress
    from mapsage_kaggle.errors import UsageError
    from mapsage_kaggle.jobs.average import average, beside_parents
    from mapsage_kaggle.jobs.evaluate import EvaluationOptions
    from mapsage_kaggle.jobs.subject import open_subject
    from mapsage_kaggle.paths import WorkDir

    first, *others = arguments.checkpoints
    config = arguments.config or WorkDir(first.parent).config
    if not config.is_file():
        raise UsageError(
            Message("There is no config at {path}.", config), "Name the run's config with --config."
        )
    subject = open_subject(_model_options(arguments, config=config, checkpoint=first, needs_data=True))
    options = _picked(EvaluationOptions, arguments)
    with JobProgress("images") as progress:
        found = average(
            subject,
            others,
            out=arguments.out,
            batch_norm_images=arguments.batch_norm_images,
            on_event=progress.take,
        )
        measured = () if arguments.no_evaluate else beside_parents(found, options, on_event=progress.take)
    documents = [item.to_json() for item in measured]
    lines = [
        f"{found.subject.checkpoint}: the mean of {len(found.parents)} checkpoints",
        f"{found.num_batch_norms} BatchNorm layers gathered anew over {found.num_images} images",
        *([family_text(documents)] if documents else []),
    ]
    document = {
        "checkpoint": str(found.subject.checkpoint),
        "sha256": found.subject.inspection.sha256,
        "parents": [str(item.path) for item in found.parents],
        "batch_norms": found.num_batch_norms,
        "batch_norm_images": found.num_images,
        "evaluations": documents,
    }
    _show(arguments, document, "\n".join(lines))
    return EXIT_DONE


def _predict(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.config.scale import ScaleOptions
    from mapsage_kaggle.display.jobs import JobProgress, prediction_text
    from mapsage_kaggle.errors import UsageError
    from mapsage_kaggle.jobs.predict import PredictOptions, predict

    try:
        bands = tuple(int(band) for band in arguments.bands.split(",")) if arguments.bands else None
    except ValueError:
        raise UsageError(f"--bands {arguments.bands} is no list of numbers.", "Such as 3,2,1.") from None
    options = _picked(PredictOptions, arguments, bands=bands, scale=_picked(ScaleOptions, arguments))
    with JobProgress("images") as progress:
        found = predict(_model_options(arguments), options, progress.take)
    _show(arguments, found.to_json(), prediction_text(found))
    return EXIT_USAGE if found.refused else EXIT_DONE


def _export(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.display.jobs import JobProgress, export_text
    from mapsage_kaggle.jobs.export import FORMS, INSTANCE_METADATA, MODEL_METADATA, ExportOptions, export

    options = _picked(ExportOptions, arguments, forms=tuple(arguments.form or FORMS))
    with JobProgress("forms") as progress:
        found = export(_model_options(arguments), options, progress.take)
    _say(export_text(found))
    if found.to_fill_in:
        _say(f"Fill in {' and '.join(found.to_fill_in)} in {MODEL_METADATA} and {INSTANCE_METADATA}.")
    _say("Upload it, the first time with:")
    _say(f"  kaggle models create -p {found.out}")
    _say(f"  kaggle models instances create -p {found.out}")
    return EXIT_DONE


def _bundle(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.display.text import size
    from mapsage_kaggle.setup.bundle import OWNER_TO_FILL_IN, bundle

    report = bundle(
        arguments.out,
        owner=arguments.owner or OWNER_TO_FILL_IN,
        slug=arguments.slug,
        python=arguments.python_version,
        extra=tuple(arguments.extra),
        say=_say,
    )
    _say(f"{report.folder}: {report.num_files} files, {size(report.size_bytes)}, {len(report.wheels)} wheels")
    _say("Left to Kaggle's image:", ", ".join(map("==".join, report.left_to_image.items())))
    if arguments.owner is None:
        _say(f"Put your user name in place of {OWNER_TO_FILL_IN} in {report.folder}/dataset-metadata.json.")
    _say("Upload it, the first time with:")
    _say(f"  kaggle datasets create -p {report.folder} --dir-mode zip")
    _say("and every time after that with:")
    _say(f"  kaggle datasets version -p {report.folder} --dir-mode zip -m {report.commit[:12]}")
    if report.extra is not None:
        owner = arguments.owner or OWNER_TO_FILL_IN
        _say(f"So too {report.extra}; then, in the notebook that is to have it:")
        _say(f'  EXTRA_WHEELS = "{owner}/{arguments.slug}-extra"')
    return EXIT_DONE


def _relay(arguments: argparse.Namespace) -> int:
    if arguments.config in ("status", "cancel"):
        return _relay_status(arguments)
    from mapsage_kaggle.relay import command
    from mapsage_kaggle.relay.progress import Reporter

    names = inspect.signature(command.read).parameters
    asked = command.read(**{name: value for name, value in vars(arguments).items() if name in names})
    if arguments.dry_run:
        _say(command.plan_text(asked))
        return EXIT_DONE
    reporter = Reporter(stream=sys.stderr if arguments.json else sys.stdout, log=asked.log)
    document = command.run(
        asked, reporter, once=arguments.once, again=arguments.again, from_nothing=arguments.from_nothing
    )
    if arguments.json:
        _print_json(document)
    return EXIT_DONE


def _relay_status(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.relay import status

    if arguments.config == "cancel":
        _say(status.cancel(arguments.owner, arguments.slug))
        return EXIT_DONE
    found = status.status(arguments.owner, arguments.slug)
    _show(arguments, found, status.status_text(found))
    return EXIT_DONE


def _demo(arguments: argparse.Namespace) -> int:
    from mapsage_kaggle.demo import demo

    return demo(arguments.out)


# -- small things


def _picked(kind: type[_Options], arguments: argparse.Namespace, **more: Any) -> _Options:
    """Return options made of the arguments that are named like their fields, and of ``more``."""
    fields = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = {name: value for name, value in vars(arguments).items() if name in fields}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return kind(**{**given, **more})


def _model_options(arguments: argparse.Namespace, **more: Any) -> ModelOptions:
    from mapsage_kaggle.jobs.subject import ModelOptions

    return _picked(ModelOptions, arguments, code=tuple(map(Path, arguments.code)), **more)


def _show(arguments: argparse.Namespace, document: Any, text: str) -> None:
    """Print what a command has found, as JSON where that is asked for."""
    if arguments.json:
        _print_json(document)
    else:
        _say(text)


def _say(*parts: object, end: str = "\n", file: TextIO | None = None) -> None:
    """Print what a person reads; nothing foreign in it reaches the terminal as more than letters."""
    print(visible_lines(" ".join(map(str, parts))), end=end, file=file, flush=True)


def _print_json(document: Any) -> None:
    print(visible_json(json.dumps(document, indent=2, ensure_ascii=False)))
