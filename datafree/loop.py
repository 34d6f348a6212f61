"""The loop, whole, for every method; and what a run records, evaluates and leaves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import processes
from .data.batch import Batch
from .data.specs import Images
from .engine.advice import against_chance
from .engine.evaluation import Evaluation, Score, near_chance
from .errors import UserError
from .job import Job
from .runs.begun import TEACHER_CHECKSUM, check_teacher
from .runs.folder import OWN_FILES
from .runs.run import Run, opened

PICTURES = 20  # times a run that synthetic images are shown; chosen by us


def loop(job: Job, run: Run, evaluation: Evaluation) -> None:
    """All of it, for every method."""
    method, targets, student, pool, length = job.method, job.targets, job.student, job.pool, job.length
    costs = job.context.costs
    for epoch in run.epochs():
        warmup, batch = epoch <= length.warmup, None
        for kd_steps in length.rounds:
            batch = method.synthesize(warmup)
            if batch is not None and pool is not None:
                pool.add(targets.prepare(batch))
                costs.made(len(batch))
            run.lap("synthesis", costs.take())
            if not warmup:
                student.learn(job.source, targets, kd_steps)
            run.lap("distillation", costs.take())
        take_stock(job, run, evaluation, epoch, batch)
        run.save()
    leave(job, run, evaluation)


def take_stock(job: Job, run: Run, evaluation: Evaluation, epoch: int, batch: Batch | None) -> None:
    """The end of an epoch: reads what was reported, evaluates the student, shows the newest images, records."""
    length, last = job.length, epoch == job.length.epochs
    row = {"lr": job.student.lr} | run.terms(epoch, job.context.read(), job.networks, sum(length.rounds))
    evaluated = epoch > length.warmup and (last or epoch % length.eval_every == 0)
    if evaluated:
        row |= evaluate(job, run, evaluation, epoch)
    if last or epoch % max(1, length.epochs // PICTURES) == 0:
        run.folder.show_images(epoch, job.method.sample(64) if batch is None else batch.images)
    run.lap("evaluation", job.context.costs.take())
    run.record(epoch, {"round": epoch * len(length.rounds)} | row)
    if evaluated:
        warn_if_at_chance(job, run, run.progress.score, epoch)


def evaluate(job: Job, run: Run, evaluation: Evaluation, epoch: int) -> dict[str, float | None]:
    """Accuracy and agreement of the student as it is."""
    score = job.score(evaluation)
    about = {"arch": job.values.student, "dataset": job.context.spec.name, "epoch": epoch}
    about |= job.context.spec.classes | {"input_format": job.student.classifier.input_format}
    run.scored(score, about | {"state_dict": job.student.classifier.state_dict()})
    return {"accuracy": score.accuracy, "agreement": score.agreement}


def warn_if_at_chance(job: Job, run: Run, score: Score, epoch: int) -> None:
    """One line, at the first evaluation after a third of the epochs, if the student has learnt nothing until then."""
    length = job.length
    from_here = max(math.ceil(length.epochs / 3), length.warmup + 1)
    looks = min(length.epochs, math.ceil(from_here / length.eval_every) * length.eval_every)
    reached = score.agreement if score.accuracy is None else score.accuracy
    if epoch == looks and near_chance(reached, job.context.spec.num_classes):
        lr_g = getattr(job.values, "lr_g", None)
        run.folder.log(against_chance(reached, run.progress.generator_loss, epoch, lr_g))


def leave(job: Job, run: Run, evaluation: Evaluation) -> None:
    """The end of a run: what the next task can use, and the summary."""
    run.folder.save_array("generator_loss.npy", run.progress.generator_loss)
    left = job.method.finish()
    run.spend("finish", job.context.costs.take())
    for name, content in {**left.files, **job.targets.files()}.items():
        if name in OWN_FILES:
            raise UserError(f"method {job.values.method} leaves a file {name}, as the run itself does", "rename it")
        run.folder.save(name, content)
    if left.remark:
        run.folder.log(left.remark)
    about = {"accuracy_teacher": evaluation.accuracy_teacher, "confidence_teacher": evaluation.confidence_teacher}
    about |= {"agreement": run.progress.score.agreement}
    images = 0 if job.pool is None else len(job.pool) * processes.size()
    about |= {"rounds": job.length.epochs * len(job.length.rounds), "images": images}
    run.finish(about | left.summary | spent_of_budget(job, run))


def spent_of_budget(job: Job, run: Run) -> dict[str, float]:
    """Budget and what was spent of it, said in the log; nothing where there was none."""
    if job.length.budget is None:
        return {}
    amount, unit = job.length.budget
    spent = run.folder.seconds() + run.progress.planning_seconds if unit == "s" else run.progress.passes()
    run.folder.log(f"budget {amount:,.10g} {unit}: spent {spent:,.0f}, {100 * spent / amount:.1f} %")
    planning = {"seconds_planning": run.progress.planning_seconds}
    return {"budget": amount, "budget_spent": spent} | planning


def run_job(job: Job, path: Path, images: Images | None, config: Mapping[str, Any], remarks: Sequence[str]) -> None:
    """Opens the folder, goes on with what is there where asked to, and runs the loop to its end.

    Raises:
        UserError: where the folder cannot be used, or a loss became NaN. Stopped: after a signal.
    """
    compute = job.context.compute
    check_teacher(job.values, path, config["program"], job.teacher_checksum)
    config = {**config, TEACHER_CHECKSUM: job.teacher_checksum}
    with opened(path, job.values, config, remarks, job.parts, compute, job.pool) as run:
        if run is not None:
            job.compiling.say = job.student.say = run.folder.log
            if run.progress.epoch == 0:
                run.progress.planning_seconds = job.planning_seconds
            found = job.teacher_checksum, None if images is None else len(images)
            processes.check_same(found, "teachers or test sets")
            job.context.costs.take()  # what was tried while all was built
            evaluation = Evaluation(job.context.teacher, images, compute)
            looked = job.context.costs.take()
            if run.progress.epoch == 0:
                run.spend("evaluation", looked)
            for line in evaluation.about_teacher():
                run.folder.log(line)
            loop(job, run, evaluation)
