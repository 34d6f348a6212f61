"""A run, or several, as one web page: numbers, curves, samples, mistakes, what was reused, configuration.

    page([examine("run/anew-digits-resnet20-resnet8", registry)])

Whatever is missing (the end of the run, the test set, a file) is said in its place, with the reason.
"""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import checkpoint, reuse
from ..analysis.confusion import accuracy, class_accuracy, mistakes, worst_classes
from ..arguments import as_text
from ..errors import UserError
from ..flags import distillation_parser, training_parser
from ..task import rounds_of
from .figures import DISTILLATION_CURVES, NUMBERED, TRAINING_CURVES
from .findings import Findings
from .page import cards, document, groups, notes, paragraph, picture, section, side_by_side, table
from .run_reader import FinishedRun


def page(reports: Sequence[Findings]) -> str:
    """The HTML page, one article a run, with a table above where they are several."""
    articles = [_article(found, i) for i, found in enumerate(reports)]
    if len(reports) == 1:
        return document(_title(reports[0].run), articles[0])
    overview = "<h1>Runs</h1>\n" + _overview(reports)
    return document(f"{len(reports)} runs", "\n".join([overview, *articles]))


def _overview(reports: Sequence[Findings]) -> str:
    header = ["run", "task", "teacher", "last", "best", "agreement", "time", "state"]
    rows = []
    for found in reports:
        numbers = _numbers(found)
        shares = [numbers.get(key) for key in ("accuracy_teacher", "accuracy_last", "accuracy_best", "agreement")]
        state = "complete" if found.run.complete else "incomplete"
        time = duration(numbers["seconds_total"])
        rows.append([found.run.path.name, _title(found.run), *map(percent, shares), time, state])
    return table(header, rows, range(2, 7))


def _article(found: Findings, index: int) -> str:
    sections = [_headline(found), _curves(found, index)]
    if found.distilled:
        sections.append(_sample_section(found, index))
    sections.append(_class_section(found, index))
    if found.distilled:
        sections.append(_reuse_section(found))
    return "<article>\n" + "\n".join([*sections, _configuration(found)]) + "\n</article>"


def _title(run: FinishedRun) -> str:
    config = run.config
    if "mode" not in config:
        return f"{config.get('model')} trained on {config.get('dataset')}"
    hard = ", hard loss" + (" without attack" if config.get("no_aea") else "") if config.get("hl") else ""
    return f"{config.get('teacher')} → {config.get('student')} on {config.get('dataset')}, {config.get('mode')}{hard}"


def _planned(run: FinishedRun) -> int:
    return rounds_of(Namespace(**run.config)) if "mode" in run.config else run.config["epochs"]


def _numbers(found: Findings) -> dict:
    """summary.json or, of an incomplete run, what its metrics and its networks say so far."""
    run = found.run
    if run.complete:
        return run.summary
    measured = {
        name: [value for value in run.metrics.get(name, ()) if value is not None] for name in ("accuracy", "agreement")
    }
    seconds = [value or 0.0 for name, column in run.metrics.items() if name.startswith("seconds") for value in column]
    last = {name: values[-1] if values else None for name, values in measured.items()}
    return {
        "accuracy_last": last["accuracy"],
        "accuracy_best": max(measured["accuracy"], default=None),
        "accuracy_teacher": found.teacher_accuracy,
        "agreement": last["agreement"],
        "seconds_total": sum(seconds),
        "seconds_synthesis": sum(value or 0.0 for value in run.metrics.get("seconds_synthesis", ())),
    }


def _headline(found: Findings) -> str:
    """Title, state and the numbers that matter."""
    run, numbers = found.run, _numbers(found)
    done, planned = found.rounds_done, _planned(run)
    counter = "rounds" if found.distilled else "epochs"
    state = '<span class="state">complete</span>' if run.complete else '<span class="state bad">incomplete</span>'
    kind = "Distillation without data" if found.distilled else "Training on real data"
    values = [("Accuracy, last", percent(numbers["accuracy_last"]), f"{found.student}, on real test images")]
    values += [("Accuracy, best", percent(numbers["accuracy_best"]), "chosen on test data")]
    if found.distilled:
        values += [("Teacher", percent(numbers.get("accuracy_teacher")), "on the same images")]
        on = "synthetic images" if numbers["accuracy_last"] is None else "test images"
        values += [("Agreement", percent(numbers.get("agreement")), f"with the teacher, on {on}")]
    values += [(counter.capitalize(), f"{done}", f"of {planned}")]
    values += [("Time", duration(numbers["seconds_total"]), _share_of_synthesis(numbers))]
    if run.complete:
        values += [("Memory", f"{numbers['peak_memory_mb']:,.0f} MiB", "at its peak")]
        values += [("Images made", f"{numbers['images']:,}", "in the pool")] if "images" in numbers else []
    warnings = _warnings(run.path)
    if not run.complete:
        program = "main.py" if found.distilled else "train_scratch.py"
        go_on = f"Go on: python {program} --resume {shlex.quote(str(run.path))}"
        warnings.insert(0, f"Incomplete: {done} of {planned} {counter} are recorded; numbers are of those. {go_on}")
    heading = f'<p class="soft">{kind} · {state}</p>\n<h1>{escape(_title(run))}</h1>'
    return "\n".join([heading, f"<p><code>{escape(str(run.path))}</code></p>", notes(warnings), cards(values)])


def _share_of_synthesis(numbers: dict) -> str:
    seconds = numbers.get("seconds_synthesis")
    return f"{duration(seconds)} of it synthesis" if seconds else ""


def _warnings(path: Path) -> list[str]:
    """What the run itself warned of."""
    log = path / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return [line for line in lines if line.startswith("warning:")]


def _curves(found: Findings, index: int) -> str:
    counter = "round" if found.distilled else "epoch"
    curves = DISTILLATION_CURVES if found.distilled else TRAINING_CURVES
    drawn = [
        picture(found.figures[f"curves/{tag}"], curve.title, f"{index}/{tag}")
        for tag, curve in curves.items()
        if f"curves/{tag}" in found.figures
    ]
    return section("Curves", side_by_side(*drawn) if drawn else paragraph(f"No {counter} has been recorded yet."))


def _sample_section(found: Findings, index: int) -> str:
    missing = notes(found.missing.get("samples", []))
    if found.samples is None:
        return section("Synthetic images", missing, paragraph("There are none to show."))
    title, caption = "Samples over rounds", f"The first images of evenly spaced rounds. From {found.samples.source}."
    drawn = picture(found.figures["samples_over_rounds"], title, f"{index}/samples", caption)
    return section("Synthetic images", missing, f'<div class="one">{drawn}</div>')


def _class_section(found: Findings, index: int) -> str:
    """Accuracy by class and what is taken for what, or why there is neither."""
    missing = notes(found.missing.get("classes", []))
    if not found.matrices:
        text = "Without real test images there is no accuracy by class and no confusion matrix."
        agreement = _numbers(found).get("agreement")
        if agreement is not None:
            text += f" The student gives the teacher's answer to {percent(agreement)} of fresh synthetic images."
        return section("Classes", missing, paragraph(text))
    title, matrix = next(iter(found.matrices.items()))
    caption = f"{matrix.sum():,} test images, {percent(accuracy(matrix))} of them on the diagonal."
    confusion = picture(
        found.figures[f"confusion/{title}"], f"Confusion matrix of the {title}", f"{index}/confusion", caption
    )
    by_class = picture(found.figures["class_accuracy"], "Accuracy by class", f"{index}/classes")
    columns = side_by_side(confusion + _mistake_table(found), by_class + _class_table(found))
    return section("Classes", missing, columns)


def _class_table(found: Findings) -> str:
    """Every class where they are few, else the ten of lowest accuracy."""
    label, matrix = next(iter(found.matrices.items()))
    accuracies = {name: class_accuracy(other).tolist() for name, other in found.matrices.items()}
    few = len(found.names) <= NUMBERED
    chosen = range(len(found.names)) if few else worst_classes(matrix)
    images = matrix.sum(1).tolist()
    rows = []
    for i in chosen:
        shares = (percent(values[i]) if images[i] else "–" for values in accuracies.values())
        rows.append([found.names[i], str(images[i]), *shares])
    header = ["class", "images", *accuracies]
    heading = "By class" if few else f"The {len(rows)} classes of the {label}'s lowest accuracy"
    return f"<h3>{escape(heading)}</h3>" + table(header, rows, range(1, len(header)))


def _mistake_table(found: Findings) -> str:
    label, matrix = next(iter(found.matrices.items()))
    images = matrix.sum(1).tolist()
    rows = [
        [found.names[true], found.names[said], str(times), percent(100 * times / images[true])]
        for true, said, times in mistakes(matrix)
    ]
    if not rows:
        return paragraph(f"The {label} makes no mistake on these images.")
    header = ["true class", "taken for", "times", "share of class"]
    return f"<h3>The {label}'s most frequent mistakes</h3>" + table(header, rows, (2, 3))


def _reuse_section(found: Findings) -> str:
    """What g2 and d began as, and what the next task gets."""
    run, parts = found.run, []
    given = [run.config.get(key) for key in ("reuse_generator_path", "reuse_decoder_path")]
    if any(given):
        parts += ["<h3>This run began with</h3>", _part_table([Path(path) for path in given if path])]
    else:
        parts.append(paragraph("This run began with nothing: g1, g2 and d were random."))
    left = [run.path / name for name in (reuse.GENERATOR_FILE, reuse.DECODER_FILE, reuse.ABANDONED_FILE)]
    if not run.complete:
        return section("Reuse", *parts, paragraph("It has left nothing yet: that comes with its end."))
    kept, scores = run.summary["reused_network"], {name: run.summary[f"score_{name}"] for name in ("g1", "g2")}
    why = "the lower" if run.config["reuse_pick"] == "score" else "named by --reuse_pick"
    text = f"The next task gets {kept} ({why}) and d. Inversion loss of each network alone: "
    text += ", ".join(f"{name} {score:.4g}" for name, score in scores.items()) + "."
    return section("Reuse", *parts, "<h3>It leaves</h3>", paragraph(text), _part_table(left, short=True))


def _part_table(paths: Sequence[Path], short: bool = False) -> str:
    """The files of parts of generators, with the origin that each one states; ``short`` leaves out their folder."""
    header = ["file", "holds", "made by", "data set", "teacher → student", "tag", "seed", "made for"]
    return table(header, [[path.name if short else str(path), *_part(path)] for path in paths])


def _part(path: Path) -> list[str]:
    """What that table says of a file, after its name."""
    try:
        content = checkpoint.load(path, "reuse file")
    except UserError as error:
        return [error.what, *[""] * 6]
    content = content if isinstance(content, dict) else {}
    origin, config = ({**(content.get(key) or {})} for key in ("origin", "config"))
    part = origin.get("part") or {"decoder": "d"}.get(content.get("kind"), str(content.get("kind")))
    pair = f"{origin.get('teacher')} → {origin.get('student')}"
    made = [_said(origin.get(key)) for key in ("mode", "dataset", "tag", "seed")]
    return [part, *made[:2], pair, *made[2:], ", ".join(f"{key} {value}" for key, value in config.items())]


def _said(value: Any) -> str:
    return "–" if value is None else str(value)


def _configuration(found: Findings) -> str:
    """Every flag in the groups of --help, and the environment."""
    config = dict(found.run.config)
    environment = config.pop("environment", {})
    parser = distillation_parser() if found.distilled else training_parser()
    shown = {}
    for title, names in parser.groups().items():
        rows = [
            (
                name,
                _said(value) if value is None else as_text(value),
                as_text(value) != as_text(parser.get_default(name)),
            )
            for name, value in ((name, config.pop(name)) for name in names if name in config)
        ]
        if rows:
            shown[title] = rows
    if config:
        shown["other"] = [(name, as_text(value), False) for name, value in config.items()]
    shown["environment"] = [(name, as_text(value), False) for name, value in environment.items()]
    remark = "In bold what is not the flag's own default: given, from a preset, or worked out."
    return section("Configuration", paragraph(remark, "soft"), groups(shown))


def percent(value: float | None) -> str:
    """As ``97.50 %``; a dash for None."""
    return "–" if value is None else f"{value:.2f} %"


def duration(seconds: float) -> str:
    """As ``12.3 s``, ``14 min 3 s`` or ``5 h 2 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
