"""Distil a student from a teacher without data, and leave a generator that makes the next task cheaper.

    python main.py --mode anew                 digits, resnet20 -> resnet8
    python main.py --mode reuse_common         the same task again, from what the first run left

Each round makes a batch of images (datafree/synthesis/), adds it to the pool (datafree/data/pool.py), distils on the
pool (datafree/distillation.py) and evaluates the student (datafree/evaluation.py); datafree/rounds.py has the loop.
"""

from argparse import Namespace

import registry
from datafree import device, resume, reuse
from datafree.arguments import plain_values
from datafree.data.datasets import test_images
from datafree.entry import run_program
from datafree.errors import UserError
from datafree.flags import distillation_parser
from datafree.modes import MODES, method_name
from datafree.rounds import HARD_LOSS_METRICS, METRICS, distil, leave_for_the_next_task, summary
from datafree.run_folder import RunFolder, environment, folder_name
from datafree.stopping import StopRequests
from datafree.task import build, rounds_of, sizes


def main(argv: list[str]) -> None:
    parser = distillation_parser()
    args = resume.resolve(parser, argv, registry.distillation_preset)
    spec = registry.dataset_spec(args)
    complete(args)
    compute = device.choose(args.device, args.precision)
    args.precision = compute.precision  # a resumption must not choose another
    path = resume.run_path(
        args, folder_name(method_name(args.mode, args.hl, args.no_aea), spec.name, args.teacher, args.student, args.tag)
    )
    task = build(args, spec, compute, registry.MODELS)
    report = [*parser.grouped(args), f"runs on: {compute}", sizes(task), f"writes to: {path}"]
    if args.dry_run:
        print("\n".join(report))
        return
    images, remark = test_images(spec, args.data_root, args.download)
    columns = METRICS + HARD_LOSS_METRICS * args.hl
    with RunFolder(path, columns, args.overwrite, bool(args.resume)) as folder, StopRequests() as stop:
        if folder.complete():
            return
        config = {
            "program": parser.prog,
            **plain_values(args),
            "environment": environment(f"{compute.device}, {compute.precision}"),
        }
        folder.save_config(config)
        for line in [*report, *remark]:
            folder.log(line)
        progress = distil(args, task, folder, stop, images)
        folder.save_array("generator_loss.npy", progress.generator_loss)
        reused = leave_for_the_next_task(args, task, folder)
        folder.finish(summary(task, progress) | reused, compute.device)


def complete(args: Namespace) -> None:
    """Fills in what depends on other values, and checks what depends on two of them."""
    mode = MODES[args.mode]
    if args.teacher_path is None:
        args.teacher_path = registry.pretrained_path(args.dataset, args.teacher)
    args.ep_steps = args.ep_steps or args.kd_steps
    paths = (args.reuse_generator_path, args.reuse_decoder_path)
    if not mode.reuse and any(paths):
        raise UserError(f"mode {args.mode} reuses nothing", "choose a reuse mode, or leave the reuse paths out")
    if mode.reuse and not any(paths):
        left_by = args.run_root / folder_name("anew", args.dataset, args.teacher, args.student, args.tag)
        args.reuse_generator_path, args.reuse_decoder_path = reuse.files_in(left_by)
    elif mode.reuse and not all(paths):
        raise UserError("a reuse path is missing", "give --reuse_generator_path and --reuse_decoder_path")
    if (args.no_aea or args.no_swap) and not args.hl:
        raise UserError("--no_aea and --no_swap are about the hard loss", "add --hl")
    if args.warmup >= rounds_of(args):
        raise UserError(
            f"{args.warmup} rounds of warm-up leave none of {rounds_of(args)} to distil in",
            "lower --warmup or raise --epochs",
        )
    if args.compile and args.no_compile:
        raise UserError("--compile and --no_compile contradict each other", "leave one out")
    if args.lr_min > args.lr:
        raise UserError(f"--lr_min {args.lr_min} is above --lr {args.lr}", "the cosine falls: lower --lr_min")


if __name__ == "__main__":
    run_program(main)
