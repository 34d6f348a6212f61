"""How fast the hot path is: against the least that plain PyTorch needs, and against what the machine can multiply.

    python scripts/benchmark.py --teacher resnet34 --student resnet18 --dataset cifar10
    python scripts/benchmark.py --hl --json run/benchmark.json

kd, synth, attack, eval, save, round: the code that main.py runs, with drawing, augmentation, losses and logging; train:
that of train_scratch.py; floors and unit: floors.py. All are measured in turn, over and over, so that what else the
machine does falls on all of them. Random weights and images: no checkpoint and no data set is needed.
"""

import copy
import io
import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from floors import Measure, Times, elsewhere, floors, flops, matmul_rate, operations, timed

import registry
from datafree.cli.program import run_program
from datafree.configuration import plain
from datafree.data.augmentation import Augmentation
from datafree.data.batch import Batch
from datafree.data.placement import Placement
from datafree.data.pool import ImagePool
from datafree.data.specs import DatasetSpec, TensorImages, size_text
from datafree.engine import device
from datafree.engine.device import Compute
from datafree.engine.evaluation import Evaluation
from datafree.engine.probe import fitted
from datafree.engine.randomness import Streams
from datafree.engine.training import Training
from datafree.job import Job, prepare
from datafree.loop import take_stock
from datafree.methods.aeahl_rg import AeahlRg
from datafree.models.classifier import Classifier
from datafree.runs.environment import environment
from datafree.runs.folder import RunFolder
from datafree.runs.run import Run
from datafree.runs.snapshot import Snapshot
from main import command_line

BATCHES, POOLS = (1, 2, 4), (1_000, 10_000, 100_000)
TRAIN_STEPS, TEST_IMAGES = 4, 1000
STEPS_ON_GPU = 10  # of a floor, timed together: a GPU is to be kept waiting for the processor no more than in a loop
SMALL_MATRICES = (512,)
FLAGS = {  # of main.py, with what they are here unless given; chosen by us to finish in minutes on two cores
    "teacher": "resnet20",
    "student": "resnet8",
    "dataset": "digits",
    "batch_size": 64,
    "g_steps": 10,
    "kd_steps": 40,
    "ngf": 64,
    "device": "auto",
    "precision": "auto",
    "step": "eager",
}
SWITCHES = ("hl", "compile", "no_compile")


def main(argv: list[str]) -> None:
    options = parsed(argv)
    values = flags_of_main(options, options.batch_size)
    spec, compute = registry.dataset_spec(values), device.choose(values.device, values.precision)
    print(
        f"{values.teacher} > {values.student}, {spec.name} at {size_text(spec.img_size)} pixels; {compute}", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        found = measured(values, spec, compute, options.repeats, Path(folder) / "1")
        print(report(found), flush=True)
        if options.growth:
            found["growth"] = growth(options, spec, compute, Path(folder))
            print(growth_report(found["growth"]))
    settings = {name: plain(value) for name, value in vars(options).items()}
    found |= {"settings": settings, "environment": environment(str(compute))}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def parsed(argv: list[str]) -> Namespace:
    """The command line."""
    import argparse

    parser = argparse.ArgumentParser(prog="benchmark.py", description="Measure the hot path against its floors.")
    of_main = parser.add_argument_group("flags of main.py, which checks them")
    for name, default in FLAGS.items():
        of_main.add_argument(f"--{name}", default=default, type=type(default), help=f"default: {default}")
    of_main.add_argument("--p_width", default=64, type=int, help="with --hl; default: 64")
    for name in SWITCHES:
        of_main.add_argument(f"--{name}", action="store_true", help="see main.py --help")
    own = parser.add_argument_group("benchmark")
    own.add_argument("--repeats", type=int, default=5, metavar="N", help="of everything, after a warm-up (default: 5)")
    own.add_argument("--growth", action="store_true", help="also at 2 and 4 times the batch, and with larger pools")
    own.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    return parser.parse_args(argv)


def flags_of_main(options: Namespace, batch_size: int) -> Namespace:
    """The flags of main.py that these options stand for; both batches have the size given."""
    line = [f"--{name}={getattr(options, name)}" for name in FLAGS if name != "batch_size"]
    line += [f"--{name}" for name in SWITCHES if getattr(options, name)]
    line += [f"--p_width={options.p_width}"] * options.hl
    line += [f"--batch_size={batch_size}", f"--synthesis_batch_size={batch_size}", "--warmup=0"]
    return command_line(line)[1]


def random_classifier(name: str, spec: DatasetSpec) -> Classifier:
    """Of random weights, with the BN statistics that these meet on noise, so that its answers stay finite."""
    classifier = registry.classifier(name, spec)
    with torch.no_grad():
        for _ in range(10):
            classifier.network.train()(torch.randn(16, *spec.shape))
    return classifier


def measured(
    values: Namespace, spec: DatasetSpec, compute: Compute, repeats: int, folder: Path, small: bool = False
) -> dict[str, Any]:
    """Everything, at one batch size; where ``small``, in one process, with small matrices, without the unit."""
    device.reset_peak_memory(compute.device)
    teacher, student = (random_classifier(name, spec) for name in (values.teacher, values.student))
    measures, steps = beside(teacher, student, values, compute, spec, small)
    if small:
        del measures["unit"]
    job, said = prepare(values, spec, teacher.cpu(), student.cpu(), AeahlRg, compute), []
    job.targets.observed = True  # of the attack: P as it began will do
    job.compiling.say = job.student.say = said.append
    with RunFolder(folder) as opened:
        hot = hot_path(job, opened)
        times = timed(measures | hot, repeats, compute.device)
        memory = device.peak_memory_mb(compute.device)
        job.student.new_graph = None  # in a graph that is replayed there are no operations to count
        started = {name: operations(hot[name]) for name in ("kd", "synth")}
        counts = {name: flops(hot[name]) for name in started}
    rate = matmul_rate(compute, SMALL_MATRICES if small else None)
    times |= {name: times[name].each(count) for name, count in (steps | {"kd": values.kd_steps}).items()}
    counts["kd"] /= values.kd_steps
    return {
        "batch_size": values.batch_size,
        "networks": (str(job.compiling).removeprefix("; ") or "networks eager") + ", steps recorded" * recorded(job),
        "remarks": said,
        "seconds": {name: {"median": t.median, "spread": t.spread, "all": t.seconds} for name, t in times.items()},
        "ratios": ratios(times),
        "samples_per_second": {
            "kd": values.batch_size / times["kd"].median,
            "synth": values.batch_size * values.g_steps / times["synth"].median,
            "train": values.batch_size / times["train"].median,
            "eval": TEST_IMAGES / times["eval"].median,
        },
        "matmul_tflops": rate / 1e12,
        "operations": {"kd": started["kd"] / values.kd_steps, "synth": started["synth"] / values.g_steps},
        "share_of_matmul_rate": {name: count / times[name].median / rate for name, count in counts.items()},
        "peak_memory_mb": memory,
        "pool_bytes_per_image": job.pool.bytes_per_image,
    }


def recorded(job: Job) -> bool:
    """Whether its distillation steps were, as far as any was made."""
    return any(recording.recorded for recording in job.student.recordings)


def beside(
    teacher: Classifier, student: Classifier, values: Namespace, compute: Compute, spec: DatasetSpec, small: bool
) -> tuple[dict[str, Measure], dict[str, int]]:
    """The floors and training; and by name how many steps those are that are timed several together."""
    of_floors = teacher.network, student.network, values, spec.shape, compute.device
    apart = compute.device.type == "cpu" and not small
    measures, steps = elsewhere(floors, *of_floors) if apart else floors(*of_floors), {}
    if compute.device.type == "cuda":
        steps = dict.fromkeys(("floor_kd", "floor_train"), STEPS_ON_GPU)
        measures |= {name: repeated(measures[name], count) for name, count in steps.items()}
    measures["train"] = training(copy.deepcopy(teacher), values, compute, spec)
    return measures, steps | {"train": TRAIN_STEPS}


def ratios(times: Mapping[str, Times]) -> dict[str, float]:
    """Of the hot path over its floors, of a round over the unit where that was measured."""
    pairs = [("kd", "floor_kd"), ("synth", "floor_synth"), ("train", "floor_train"), ("round", "unit")]
    return {f"{a}/{b}": times[a].over(times[b]) for a, b in pairs if b in times}


def repeated(measure: Measure, count: int) -> Measure:
    """So many calls as one."""

    def calls() -> None:
        for _ in range(count):
            measure()

    return calls


def hot_path(job: Job, folder: RunFolder) -> dict[str, Measure]:
    """What main.py runs, cut into pieces to be measured one by one; the job's state moves on with every call."""
    values, compute, one = job.values, job.context.compute, job.context.spec.shape
    shape = (TEST_IMAGES, *one)
    test = TensorImages(torch.randint(256, shape).to(torch.uint8), torch.zeros(TEST_IMAGES).long())
    evaluation, pool = Evaluation(job.context.teacher, test, compute), filled_pool(job, 1000)
    snapshot = Snapshot(folder.path, job.parts, job.pool)
    run = Run(folder, snapshot, job.length.epochs, compute)
    images = torch.rand(values.synthesis_batch_size, *one, device=compute.device)

    def learn() -> None:
        job.student.learn(pool, job.targets, values.kd_steps)
        job.context.read().means()

    def synthesize() -> None:
        job.method.synthesize(warmup=False)
        job.context.read().means()

    def round_() -> None:  # as in loop.loop, saving apart
        job.pool.clear()
        batch = job.method.synthesize(warmup=False)
        job.pool.add(job.targets.prepare(batch))
        job.student.learn(job.pool, job.targets, values.kd_steps)
        with redirect_stdout(io.StringIO()):
            take_stock(job, run, evaluation, 1, None)

    def attack() -> None:  # K steps of P's training, and a batch that enters the pool
        logits = job.context.answers(images)
        for _ in range(values.g_steps):
            job.targets.train_step(images, logits)
        job.pool.clear()
        job.pool.add(job.targets.prepare(Batch(images)))
        job.context.read().means()

    def evaluate() -> None:
        evaluation.score(job.student.classifier)

    measures = {"kd": learn, "synth": synthesize, "eval": evaluate, "round": round_, "save": snapshot.save}
    return measures | ({"attack": attack} if "P" in job.targets.networks else {})


def training(classifier: Classifier, values: Namespace, compute: Compute, spec: DatasetSpec) -> Measure:
    """An epoch of train_scratch.py over TRAIN_STEPS batches of random images."""
    count = TRAIN_STEPS * values.batch_size
    shape = (count, *spec.shape)
    images = TensorImages(torch.randint(256, shape).to(torch.uint8), torch.zeros(count).long())
    config = Training.Config(batch_size=values.batch_size, epochs=1, lr=1e-3)
    augmentation, streams = Augmentation(values.crop_padding, spec.flip), Streams(0, compute.device)
    fitted(classifier, "model", spec.shape, compute, values.batch_size)
    return Training(classifier, images.to(compute.device), config, augmentation, compute, streams).epoch


def filled_pool(job: Job, count: int) -> ImagePool:
    """A pool of ``count`` random images, as the job's student wants it, on the device."""
    like, where = job.pool, Placement(job.context.compute.device)
    pool = ImagePool(count, like.columns, where, like.augmentation, like.crops, like.crops)
    pool.extend(count)
    for column in pool.rows(0, count):
        column.random_(0, 256 if column.dtype == torch.uint8 else job.context.spec.num_classes)
    return pool


def growth(options: Namespace, spec: DatasetSpec, compute: Compute, folder: Path) -> dict[str, Any]:
    """The same at larger batches; a distillation step with larger pools."""
    batches = []
    for factor in BATCHES:
        values = flags_of_main(options, factor * options.batch_size)
        batches.append(measured(values, spec, compute, max(1, options.repeats // 2), folder / f"batch{factor}"))
    values = flags_of_main(options, options.batch_size)
    networks = (random_classifier(name, spec) for name in (values.teacher, values.student))
    job = prepare(values, spec, *networks, AeahlRg, compute)
    job.targets.observed = True  # of the attack: P as it began will do
    measures: dict[str, Measure] = {}
    for size in POOLS:
        pool = filled_pool(job, size)
        measures[str(size)] = lambda pool=pool: job.student.learn(pool, job.targets, values.kd_steps)
    times = timed(measures, options.repeats, compute.device)
    smallest = times[str(POOLS[0])]
    return {
        "batches": batches,
        "pools": {
            name: {"seconds_a_step": t.median / values.kd_steps, "ratio": t.over(smallest)} for name, t in times.items()
        },
    }


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["", "| | median s | spread |", "|---|---|---|"]
    lines += [f"| {name} | {t['median']:.4g} | ± {100 * t['spread']:.0f} % |" for name, t in found["seconds"].items()]
    lines += ["", *(f"{name}: {ratio:.3f}" for name, ratio in found["ratios"].items())]
    shown = ", ".join(f"{name} {rate:,.0f}" for name, rate in found["samples_per_second"].items())
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found["share_of_matmul_rate"].items())
    started = found["operations"]
    return "\n".join(
        [
            *lines,
            *found["remarks"],
            found["networks"],
            f"operations: {started['kd']:.0f} a distillation step, {started['synth']:.0f} a synthesis iteration",
            f"samples a second: {shown}",
            f"largest matrix product rate here: {found['matmul_tflops']:.3g} TFLOP/s; of it {shares}",
            f"peak memory {found['peak_memory_mb']:,.0f} MiB; pool {found['pool_bytes_per_image']:,} bytes an image",
        ]
    )


def growth_report(found: dict[str, Any]) -> str:
    """Markdown."""
    header = "| batch | kd samples/s | synth samples/s | kd/floor | synth/floor | peak MiB |"
    lines = ["", header, "|---|---|---|---|---|---|"]
    for row in found["batches"]:
        rates, ratios = row["samples_per_second"], row["ratios"]
        lines.append(
            f"| {row['batch_size']} | {rates['kd']:,.0f} | {rates['synth']:,.0f} | {ratios['kd/floor_kd']:.2f} "
            f"| {ratios['synth/floor_synth']:.2f} | {row['peak_memory_mb']:,.0f} |"
        )
    lines += ["", "| pool images | s a step | over the smallest |", "|---|---|---|"]
    lines += [f"| {int(n):,} | {row['seconds_a_step']:.4g} | {row['ratio']:.3f} |" for n, row in found["pools"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
