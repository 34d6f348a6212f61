"""What a run takes on GPUs that are not here: memory, operations and hours, from counts on this machine's CPU.

    python scripts/estimate.py                                                  the paper's ImageNet, on 1 and on 8 GPUs
    python scripts/estimate.py --hl                                             the same with the hard loss under attack
    python scripts/estimate.py --dataset cifar10 --teacher resnet34 --student resnet18 --test_images 10000 --gpus 1

for each piece of a round                   what main.py runs: an iteration, a distillation step, an evaluation
    count it with 2 images and with 3       FLOPs, bytes moved, operations started, bytes kept for the way back
    with B images                           on the line through both (held by tests/test_estimate.py)
a run = the pieces, as the loop makes them, summed as a budget is (datafree/runs/budget.py)
hours = FLOPs / (rate * share) + bytes of gradients between GPUs / their speed, one after the other

Flags that are not its own are main.py's, which checks them. Nothing is trained: weights and images are random. The rate
and the share of it are given, or are what gpu_check.py measured on a card (--measured).
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmark import filled_pool
from counting import FEW, MORE, Counts, Line, counted, size
from floors import Measure
from gpu_page import benchmarks, table
from torch import Tensor, nn

import registry
from datafree.cli.parser import Parser, number
from datafree.cli.program import run_program
from datafree.data.batch import Batch
from datafree.data.placement import SHARE, gibibytes
from datafree.data.specs import size_text
from datafree.engine.device import PRECISIONS, Compute
from datafree.errors import UserError
from datafree.job import Job, prepare
from datafree.models.names import given_format
from datafree.runs.budget import Prices
from datafree.runs.length import LengthConfig
from main import command_line

IMAGENET = ["--dataset", "imagenet", "--teacher", "resnet50_imagenet", "--student", "resnet50_imagenet"]
EVALUATED = 256  # images at a time, as in engine/evaluation.py
LEAST, HOUR = 1e-3, 3600.0  # of what is divided by; in seconds
ADDED = ("flops", "moved", "started")  # from piece to piece


def main(argv: list[str]) -> None:
    options, values = parsed(argv)
    job = job_of(values)
    counts, directions = counted_pieces(job)
    estimate = Estimate(job, values, LengthConfig.of(values), counts, options.test_images)
    columns = {"1 GPU" if n == 1 else f"{n} GPUs": column(estimate, options, n) for n in options.gpus}
    names = dict.fromkeys(name for each in columns.values() for name in each)
    rows = [(name, *(each.get(name, "") for each in columns.values())) for name in names]
    print("\n".join([heading(estimate, options), "", *by_network(directions, counts), ""]))
    print("\n".join(table(("", *columns), rows)))


def parsed(argv: Sequence[str]) -> tuple[Namespace, Namespace]:
    """Own flags, and main.py's. Raises UserError for what neither of them takes."""
    parser = Parser(prog="estimate.py", description="Memory and hours of a run on GPUs; other flags are main.py's.")
    positive = number(float, LEAST)
    parser.add_argument(
        "--tflops", type=positive, default=989.0, metavar="TFLOP/S", help="rate of a GPU; an H100's published bf16"
    )
    parser.add_argument(
        "--share", type=positive, nargs="+", default=[0.1, 0.2, 0.35], metavar="SHARE", help="of it that is reached"
    )
    parser.add_argument(
        "--measured",
        type=Path,
        metavar="FILE",
        help="gpu_check.json: the rate and the shares of its benchmarks instead",
    )
    parser.add_argument("--bandwidth", type=positive, default=3.35, metavar="TB/S", help="of a GPU's memory")
    parser.add_argument("--launch", type=positive, default=5.0, metavar="US", help="to start an operation, eager")
    parser.add_argument("--gpus", type=number(int, 1), nargs="+", default=[1, 8], metavar="N", help="a column each")
    parser.add_argument("--gbps", type=positive, default=100.0, metavar="GB/S", help="of each GPU to the others")
    parser.add_argument("--gpu_memory", type=positive, default=80.0, metavar="GIB", help="of a GPU")
    parser.add_argument("--test_images", type=number(int, 0), default=50_000, metavar="N", help="evaluated on")
    options, line = parser.parse_known_args(argv)
    if options.measured is not None:
        if any(word.split("=")[0] in ("--tflops", "--share") for word in argv):
            raise UserError("--measured gives the rate and the shares", "leave --tflops and --share out")
        options.tflops, options.share = measured_rate(options.measured)
    named = any(word.split("=")[0] == "--dataset" for word in line)
    values = command_line(line if named else [*IMAGENET, *line])[1]
    if values.method != "aeahl_rg":
        raise UserError(f"method {values.method} is not estimated", "leave --method out: it is done for aeahl_rg alone")
    if LengthConfig.of(values).budget:
        raise UserError("a budget is planned where the run is", "give --epochs and --warmup instead")
    for name, gpus in ((name, n) for name in ("batch_size", "synthesis_batch_size") for n in options.gpus):
        if getattr(values, name) % gpus:
            raise UserError(f"--{name} {getattr(values, name)} is of all {gpus} GPUs", "give a multiple")
    return options, values


def measured_rate(path: Path) -> tuple[float, list[float]]:
    """The largest matrix product rate in TFLOP/s, and which shares of it distillation steps reach there.

    Raises UserError where the file is none of gpu_check.py's, or has no benchmark.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.get("small"):
            raise UserError(f"{path} is of a CPU", "name one that was made on a GPU")
        found = benchmarks(told).values()
        rate = max(each["matmul_tflops"] for each in found)
        shares = {each["share_of_matmul_rate"]["kd"] * each["matmul_tflops"] / rate for each in found}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{path} tells no rate: {type(error).__name__}"
        raise UserError(what, "name a gpu_check.json with a benchmark, or give --tflops") from None
    return rate, sorted(shares)


def job_of(values: Namespace) -> Job:
    """What main.py would run, short and on the CPU, in the precision of a GPU, with weights of no use."""
    short = {"epochs": 2, "warmup": 1, "kd_steps": 1, "ep_steps": 1, "batch_size": FEW, "synthesis_batch_size": FEW}
    values = Namespace(**vars(values) | short | {"compile": False, "resume": None})
    spec, method = registry.dataset_spec(values), registry.METHODS[values.method]
    teacher, student = (
        registry.classifier(getattr(values, role), spec, given_format(values, role)) for role in ("teacher", "student")
    )
    compute = Compute(torch.device("cpu"), PRECISIONS.get(values.precision, torch.bfloat16), "as on a GPU")
    return prepare(values, spec, teacher, student, method, compute)


def counted_pieces(job: Job) -> tuple[dict[str, Line], dict[str, Counts]]:
    """The pieces of a run, by name; and passes both ways through each network, with FEW images."""
    first = pieces(job, FEW)
    for name in ("warmup", "step"):  # the first call of an optimiser makes its state
        first[name]()
    found = [counted_all(pieces(job, images), job) for images in (FEW, MORE)]
    directions = counted_all(passes(job, FEW), job)
    return {name: Line(few, found[1][name]) for name, few in found[0].items()}, directions


def counted_all(measures: Mapping[str, Measure], job: Job) -> dict[str, Counts]:
    """By name, weights and statistics of all networks not counted as saved."""
    context, method = job.context, job.method
    networks = [context.teacher, context.answering, context.student, method.generator, method.adapted]
    networks += job.targets.networks.values()
    found = {name: counted(measure, networks) for name, measure in measures.items()}
    return {name: counts.each(job.values.echo if name == "step" else 1) for name, counts in found.items()}


def pieces(job: Job, images: int) -> dict[str, Measure]:
    """What a run repeats, by name, on so many images; an iteration with its share of what is done once a round.

    "step" is as many steps as a lesson serves: --echo of them.
    """
    context, method, student = job.context, job.method, job.student
    method.config = replace(method.config, synthesis_batch_size=images, g_steps=1)
    student.config = replace(student.config, batch_size=images)
    pool, x = filled_pool(job, MORE), torch.rand(images, *context.spec.shape)

    def student_asked() -> None:
        with torch.no_grad(), context.student_as_judge() as judge:
            context.ask(judge, x)

    return {
        "warmup": lambda: method.synthesize(True),
        "iteration": lambda: method.synthesize(False),
        "entry": lambda: job.targets.prepare(Batch(x)),  # into the pool, once a round
        "step": lambda: student.learn(pool, job.targets, job.values.echo),
        "student asked": student_asked,
        "teacher asked": lambda: context.answers(x),
    }


def passes(job: Job, images: int) -> dict[str, Measure]:
    """Through each network, forward and back to what wants gradients there; of the generator also forward alone."""
    context, method, shape = job.context, job.method, (images, *job.context.spec.shape)

    def both_ways(network: nn.Module, x: Tensor) -> None:
        context.ask(network, x).sum().backward()

    def through_student() -> None:
        with context.student_as_judge() as judge:
            both_ways(judge, torch.rand(shape).requires_grad_())

    def generate() -> None:
        with torch.no_grad():
            context.ask(method.adapted, method.noise(None, images))

    return {
        "teacher to images": lambda: both_ways(context.teacher, torch.rand(shape).requires_grad_()),
        "student to images": through_student,
        "student to weights": lambda: both_ways(context.student.train(), torch.rand(shape)),
        "generator asked": generate,
        "generator to weights": lambda: both_ways(method.adapted, method.noise(None, images).requires_grad_()),
    }


@dataclass(frozen=True)
class Estimate:
    """Of a run of main.py.

    Attributes:
        job: what ``job_of`` gives.
        values, length: main.py's flags.
        counts: of ``counted_pieces``.
        test_images: that it is evaluated on.
    """

    job: Job
    values: Namespace
    length: LengthConfig
    counts: Mapping[str, Line]
    test_images: int

    def batches(self, gpus: int) -> tuple[float, float]:
        """Images that each of so many GPUs makes in a round, and learns from in a step."""
        return self.values.synthesis_batch_size / gpus, self.values.batch_size / gpus

    def of_run(self, gpus: int = 1) -> dict[str, Counts]:
        """What one of so many GPUs does in the whole run, by part; saved is 0. What ends a run is left out."""
        made, learnt = self.batches(gpus)
        at = {"step": learnt, "student asked": EVALUATED, "teacher asked": EVALUATED}
        of = {name: line.at(at.get(name, made)) for name, line in self.counts.items()}
        found = [self._summed({name: getattr(each, field) for name, each in of.items()}, gpus) for field in ADDED]
        return {part: Counts(*(each[part] for each in found), saved=0.0) for part in found[0]}

    def _summed(self, price: Mapping[str, float], gpus: int) -> dict[str, float]:
        K, entry, looks = self.values.g_steps, price["entry"], self.test_images / gpus / EVALUATED
        parts = {
            "synthesis": Prices(K * price["warmup"] + entry, K * price["iteration"] + entry, 0.0),
            "distillation": Prices(0.0, 0.0, price["step"]),
            "evaluation": Prices(0.0, 0.0, 0.0, looks * price["student asked"], looks * price["teacher asked"]),
        }
        return {name: part.of(self.length, self.length.epochs, self.length.warmup) for name, part in parts.items()}

    def sent(self, gpus: int) -> float:
        """Bytes that each GPU sends in the whole run, so that all have the sum of the gradients (in a ring)."""
        job = self.job
        an_iteration = gradients(job.method.adapted) + sum(map(gradients, job.targets.networks.values()))
        a_round = self.values.g_steps * an_iteration
        prices = Prices(a_round, a_round, gradients(job.context.student))
        return 2 * (gpus - 1) / gpus * prices.of(self.length, self.length.epochs, self.length.warmup)

    def memory(self, gpus: int = 1) -> dict[str, float]:
        """Bytes of a GPU, the pool apart; temporaries, libraries' workspaces and the allocator's waste come on top.

        Gradients are there all the time. Of several GPUs, DistributedDataParallel has the student's a second time.
        """
        context, method, student, targets = self.job.context, self.job.method, self.job.student, self.job.targets
        copies, (made, learnt) = 1 if gpus == 1 else 2, self.batches(gpus)
        of_student = size(context.student, student.optimizer.state_dict()) + copies * gradients(context.student)
        # beside theta and theta' the latter's gradient, the sum of these, and the inner Adam's two moments
        of_generator = size(method.generator, method.adapted, method.meta_optimizer.state_dict())
        of_generator += 4 * gradients(method.adapted)
        of_targets = size(targets.state_dict()) + sum(map(gradients, targets.networks.values()))
        kept = max(self.counts["iteration"].at(made).saved, self.counts["step"].at(learnt).saved)
        return {
            "teacher, twice": size(context.teacher, context.answering),
            "student, its gradients and optimiser": of_student,
            "generator, twice, likewise": of_generator,
            **({"P, likewise": of_targets} if targets.networks else {}),
            "activations kept for the way back": kept,
        }

    @property
    def pool(self) -> float:
        """Bytes of all images of the run."""
        rounds = self.length.epochs * len(self.length.rounds)
        return rounds * self.values.synthesis_batch_size * self.job.pool.bytes_per_image

    @property
    def on_disk(self) -> float:
        """Bytes of a run folder: last.pth, the pool, the last student and the best one."""
        parts = (part.state_dict() for part in self.job.parts.values())
        return size(*parts) + 2 * size(self.job.context.student.state_dict()) + self.pool


def gradients(network: nn.Module) -> int:
    """Their bytes."""
    return size([p for p in network.parameters() if p.requires_grad])


def column(estimate: Estimate, options: Namespace, gpus: int) -> dict[str, str]:
    """What is told of so many GPUs, each of them having its share of every batch."""
    made, learnt = estimate.batches(gpus)
    told = {"images a GPU, of an iteration / a step": f"{made:g} / {learnt:g}"}
    return told | of_memory(estimate, options, gpus) | of_time(estimate, options, gpus)


def of_memory(estimate: Estimate, options: Namespace, gpus: int) -> dict[str, str]:
    """Lies the pool on the GPU? As data/placement.py decides."""
    held, pool, room = estimate.memory(gpus), estimate.pool / gpus, options.gpu_memory * 2**30
    where, there = ("there", pool) if pool <= SHARE * room else ("in host memory", 0.0)
    held |= {f"pool when full, {where}": pool}
    needed = sum(held.values()) - pool + there
    too_much = "" if needed <= room else ", **too much**"
    told = {f"memory a GPU: {name}": gibibytes(each) for name, each in held.items()}
    told |= {"memory a GPU, in all": f"{gibibytes(needed)} of {options.gpu_memory:g}{too_much}"}
    return told | {"run folder": gibibytes(estimate.on_disk)}


def of_time(estimate: Estimate, options: Namespace, gpus: int) -> dict[str, str]:
    """Hours by FLOPs; and those that moving what eager operations read and write, and starting them, takes alone."""
    whole = estimate.of_run(gpus)
    operations, moved, started = (sum(getattr(part, field) for part in whole.values()) for field in ADDED)
    computing = operations / (options.tflops * 1e12 * HOUR)
    moving = moved / (options.bandwidth * 1e12 * HOUR)
    sending = estimate.sent(gpus) / (options.gbps * 1e9 * HOUR)
    told = {f"PFLOP a GPU: {name}": f"{part.flops / 1e15:,.2f}" for name, part in whole.items()}
    told |= {f"hours, {share:g} of the rate": f"{computing / share + sending:.2f}" for share in options.share}
    told |= {"of these, gradients between GPUs": f"{sending:.2f}"}
    told |= {"hours, memory traffic alone, eager": f"{moving:.2f}"}
    told |= {"hours, starting operations alone, eager": f"{started * options.launch * 1e-6 / HOUR:.2f}"}
    return told | {"share of the rate that this traffic allows": f"{computing / moving:.2f}"}


def heading(estimate: Estimate, options: Namespace) -> str:
    """What is estimated, and what is assumed."""
    context, values, length = estimate.job.context, estimate.values, estimate.length
    pixels, precision = size_text(context.spec.img_size), context.compute.precision
    return (
        f"{values.teacher} > {values.student}, {context.spec.name} at {pixels} pixels, {precision}\n"
        f"{length.epochs} epochs, {length.warmup} of them warm-up; in each {len(length.rounds)} x {values.g_steps} "
        f"iterations on {values.synthesis_batch_size} images and {sum(length.rounds)} steps on {values.batch_size}\n"
        f"assumed of a GPU: {options.tflops:g} TFLOP/s, memory {options.bandwidth:g} TB/s, "
        f"{options.launch:g} µs an operation, to the others {options.gbps:g} GB/s"
    )


def by_network(directions: Mapping[str, Counts], counts: Mapping[str, Line]) -> list[str]:
    """FLOPs an image through each network, each way."""
    forward = {name: counts[f"{name} asked"].few.flops for name in ("teacher", "student")}
    forward |= {"generator": directions["generator asked"].flops}
    rows = []
    for name, both in directions.items():
        network, _, to = name.partition(" to ")
        if to:
            ways = (forward[network], both.flops - forward[network])
            rows.append((f"{network}, back to {to}", *(f"{each / FEW / 1e9:.3g}" for each in ways)))
    return table(("GFLOP an image", "forward", "backward"), rows)


if __name__ == "__main__":
    run_program(main)
