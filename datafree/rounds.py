"""The rounds of a run.

for each round
    x    <- synthesis (a batch of images; the generator improves)
    pool <- x, with attacked twins where the hard loss wants them
    S    <- distillation on the pool                                  not in warm-up
    evaluate S; record the round; save the state
leave g1 or g2, and d, for the next task
"""

import math
import shlex
from argparse import Namespace

from torch import Tensor, nn

from . import reuse
from .data.augment import to_levels
from .data.datasets import Images, TensorImages
from .errors import check_weights_finite, not_finite_in
from .evaluation import Evaluation, Score
from .progress import Progress, round_line
from .readings import Readings, Stopwatch
from .run_folder import RunFolder
from .snapshot import Snapshot
from .stopping import Stopped, StopRequests
from .task import Task, steps_in

METRICS = [
    *("round", "loss_bn", "loss_oh", "loss_adv", "loss_generator", "loss_kd", "accuracy", "agreement", "lr"),
    *("seconds_synthesis", "seconds_distillation", "seconds_evaluation"),
]
HARD_LOSS_METRICS = [
    *("loss_hard", "loss_gap", "attack_success", "swap_rate", "attacked_rate", "label_disagreement"),
]
FRESH_IMAGES = 512  # judge agreement where there is no test set; chosen by us


def distil(args: Namespace, task: Task, folder: RunFolder, stop: StopRequests, images: Images | None) -> Progress:
    """The rounds, each saved before the next begins. Returns where they end."""
    evaluation = Evaluation(task.teacher, images, task.synthesis.augmentation, task.compute)
    task.accuracy_teacher = evaluation.accuracy_teacher
    parts = {"synthesis": task.synthesis, "distillation": task.distillation, "streams": task.streams}
    if task.attack:
        parts["attack"] = task.attack
    snapshot = Snapshot(folder.path, parts, task.pool)
    progress = Progress.restored(snapshot.load() if args.resume else None)
    folder.start(progress.metrics_bytes, progress.round, progress.seconds_total)
    for number in folder.rounds(task.rounds, progress.round):
        row = one_round(args, task, folder, evaluation, progress, number)
        folder.record(row, round_line(row, "round", task.rounds))
        warn_if_at_chance(args, task, folder, progress)
        progress.metrics_bytes = folder.metrics_bytes()
        progress.seconds_total = folder.seconds()
        snapshot.save(progress.state())
        if stop.received:
            command = f"python main.py --resume {shlex.quote(str(folder.path))}"
            raise Stopped(stop.received, f"stopped after round {number}; go on: {command}")
    return progress


def one_round(
    args: Namespace, task: Task, folder: RunFolder, evaluation: Evaluation, progress: Progress, number: int
) -> dict:
    """Synthesis, distillation, evaluation. Takes ``progress`` on and returns the row of metrics.csv."""
    warming_up, last = number <= args.warmup, number == task.rounds
    row, clock = {"round": number, "lr": task.distillation.lr}, Stopwatch(task.compute.device)
    made = task.synthesis.synthesize(adversarial=not warming_up)
    rates = fill_pool(task, made.images)
    clock.lap("seconds_synthesis")
    learnt = Readings() if warming_up else task.distillation.run(task.pool, steps_in(args, number))
    clock.lap("seconds_distillation")
    with not_finite_in(f"round {number}"):  # nothing above waits for the device
        row |= made.terms | rates.means() | learnt.means()
        check_weights_finite(trained_networks(task), steps_in(args, number))
    if not warming_up and (last or number % args.eval_every == 0):
        score = evaluation.score(task.student, synthetic_set(task) if evaluation.images is None else None)
        row |= {"accuracy": score.accuracy, "agreement": score.agreement}
        save_student(args, task, folder, score, number, is_best=score.beats(progress.best))
        progress.score, progress.best = score, score if score.beats(progress.best) else progress.best
    if last or number % max(1, task.rounds // 20) == 0:
        folder.show_images(number, made.images)
    clock.lap("seconds_evaluation")
    row |= clock.seconds()
    progress.round = number
    progress.generator_loss += made.generator_loss
    progress.seconds_synthesis += row["seconds_synthesis"]
    return row


def trained_networks(task: Task) -> dict[str, nn.Module]:
    """By what they are called in a message."""
    networks = {"student": task.student, "generator": task.synthesis.generator}
    return networks | ({"P": task.attack.network} if task.attack else {})


def fill_pool(task: Task, x: Tensor) -> Readings:
    """Takes images into the pool, with their attacked twins where these are made once. Returns the attack's rates."""
    rates = Readings()
    if task.attack is None or not task.attack.in_pool:
        task.pool.add(x)
    else:
        made = task.attack.twins(x)
        task.pool.add(made.images, made.twins, made.labels)
        rates.add(made.rates)
    return rates


def warn_if_at_chance(args: Namespace, task: Task, folder: RunFolder, progress: Progress) -> None:
    """One line, at the first evaluation after a third of the rounds, if the student has learnt nothing until then."""
    from_here = max(math.ceil(task.rounds / 3), args.warmup + 1)
    looks = min(task.rounds, math.ceil(from_here / args.eval_every) * args.eval_every)
    chance = 100 / task.spec.num_classes
    reached = progress.score.agreement if progress.score.accuracy is None else progress.score.accuracy
    if progress.round == looks and reached < min(1.5 * chance, chance + (100 - chance) / 10):
        folder.log(
            f"warning: the student is still near chance ({reached:.1f} %) - lower --lr, or raise --kd_steps; if the "
            "images in synthetic.png are all alike, raise --g_steps"
        )


def synthetic_set(task: Task) -> TensorImages:
    """Images that the student has not been trained on: fresh noise through the generator as it is."""
    x = task.synthesis.sample(FRESH_IMAGES, "evaluation")
    return TensorImages(to_levels(x), x.new_zeros(len(x)).long())


def save_student(args: Namespace, task: Task, folder: RunFolder, score: Score, number: int, is_best: bool) -> None:
    """student_last.pth and, where the student is the best so far, best.pth."""
    content = {
        "state_dict": task.student.state_dict(),
        "arch": args.student,
        "dataset": task.spec.name,
        "num_classes": task.spec.num_classes,
        "accuracy": score.accuracy,
        "agreement": score.agreement,
        "round": number,
    }
    for name in ["student_last.pth", *(["best.pth"] if is_best else [])]:
        folder.save(name, content)


def summary(task: Task, progress: Progress) -> dict:
    """What the rounds gave, for summary.json."""
    return {
        "accuracy_last": progress.score.accuracy,
        "accuracy_best": progress.best.accuracy,
        "accuracy_teacher": task.accuracy_teacher,
        "agreement": progress.score.agreement,
        "rounds": progress.round,
        "seconds_synthesis": progress.seconds_synthesis,
        "images": len(task.pool),
    }


def leave_for_the_next_task(args: Namespace, task: Task, folder: RunFolder) -> dict:
    """Chooses between g1 and g2 and writes the three parts. Returns what that adds to the summary."""
    generator = task.synthesis.generator
    origin = {key: getattr(args, key) for key in ("mode", "dataset", "teacher", "student", "tag", "seed")}
    if task.attack:
        folder.save("gap.pth", task.attack.exported() | {"origin": origin})
    scores = reuse.score_networks(
        generator, task.teacher, task.synthesis.augmentation, task.compute, task.streams, args.bn, args.oh,
        args.synthesis_batch_size,
    )  # fmt: skip
    kept = min(scores, key=scores.get) if args.reuse_pick == "score" else args.reuse_pick
    reuse.save_parts(generator, kept, folder.path, origin)
    folder.log(f"inversion loss alone: g1 {scores['g1']:.4g}, g2 {scores['g2']:.4g}; the next task gets {kept} and d")
    return {"score_g1": scores["g1"], "score_g2": scores["g2"], "reused_network": kept}
