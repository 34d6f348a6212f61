"""Distil a student from a teacher without data, and leave a generator that makes the next task cheaper.

    python main.py --mode anew                 digits, resnet20 -> resnet8
    python main.py --mode reuse_common         the same task again, from what the first run left

for epoch in run.epochs()                                   what is recorded, evaluated, saved
    for each of its rounds                                  --ep_steps / --kd_steps of them
        batch = method.synthesize(warmup)                   datafree/methods/aeahl_rg.py, or --method
        pool.add(targets.prepare(batch))                    datafree/targets/: soft; --hl hard labels, under attack
        student.learn(pool, targets, kd_steps)              on targets.lesson and .loss of its batches; not in warm-up
    evaluate, record, save                                  datafree/runs/; no evaluation in warm-up
method.finish()                                             AEAHL-RG: g1 or g2, and d, for the next task

The loop itself is ``loop`` in datafree/loop.py; datafree/api.py does the same job from Python.
"""

import time
from argparse import Namespace
from functools import cache, partial

import registry
from datafree import processes
from datafree.cli import resume
from datafree.cli.flags import distillation_configs, flags_of_others
from datafree.cli.parser import Parser
from datafree.cli.program import keep_what_is_built, run_program
from datafree.data.specs import test_images
from datafree.engine import device
from datafree.engine.randomness import initialising
from datafree.errors import UserError
from datafree.job import prepare_planned, run_name
from datafree.loop import run_job
from datafree.methods.base import Method
from datafree.methods.loading import method_class
from datafree.models.loading import Loaded, load_classifier
from datafree.models.names import given_format
from datafree.targets import chosen


def main(argv: list[str]) -> None:
    began = time.perf_counter()
    processes.join()
    parser, values, method = command_line(argv)
    spec, compute = registry.dataset_spec(values), device.choose(values.device, values.precision)
    values.precision = compute.precision  # a resumption must not choose another
    method.complete(values)
    path = resume.run_path(parser, values, run_name(values, method))
    takes = {role: given_format(values, role) for role in ("teacher", "student")}
    weights = "file" if values.teacher_path else "own"
    teacher = registry.classifier(values.teacher, spec, takes["teacher"], weights, values.download)
    loaded = Loaded({}, [f"teacher {values.teacher}: with the weights that it comes with"])
    if values.teacher_path:
        resume.check_teacher_file(values)
        loaded = load_classifier(teacher, values.teacher_path, given=takes["teacher"], key=values.teacher_weights)
    with initialising(values.seed, "student"):
        student = registry.classifier(values.student, spec, takes["student"], download=values.download)
    test = cache(lambda: test_images(spec, values.data_root, values.download))
    training = cache(partial(spec.load, values.data_root, True, values.download))  # read by yardsticks alone
    how = {"training_images": training, "asked": vars(parser.given(argv))}
    networks = teacher, student
    # with a budget: after a trial on copies, which says how many epochs it buys
    job = prepare_planned(values, spec, *networks, method, compute, path, lambda: test()[0], began, **how)
    preset = registry.distillation_preset(values, method)
    origins = parser.origins(argv, registry.preset_name(values), preset, values) if not values.resume else []
    report = [*parser.grouped(values), *origins, *compute.about(), job.sizes(), f"writes to: {path}"]
    report += [*loaded.remarks, *job.remarks]
    if values.dry_run:
        if processes.first():
            print("\n".join(report))
        return
    images, remark = test()
    keep_what_is_built()
    run_job(job, path, images, parser.config(values), [*report, *remark])


def command_line(argv: list[str]) -> tuple[Parser, Namespace, type[Method]]:
    """The flags that method and targets have, their values, and the method."""
    known = resume.beginning(argv)
    method = method_class(known.method, registry.METHODS)
    configs = distillation_configs(method, known.method, chosen(known.hl, known.no_aea, method.targets))
    others = flags_of_others(registry.METHODS, configs)
    parser = Parser("main.py", "Distil a student from a teacher without data.", configs, others)
    values = resume.arguments(parser, argv, partial(registry.distillation_preset, method=method))
    parser.check(values, argv)
    values.ep_steps = values.ep_steps or values.kd_steps  # an epoch is a round unless told otherwise
    values.teacher_path = values.teacher_path or registry.teacher_file(values.dataset, values.teacher)
    if values.teacher_weights and not values.teacher_path:
        raise UserError("--teacher_weights names weights in a file", "give the file with --teacher_path")
    return parser, values, method


if __name__ == "__main__":
    run_program(main)
