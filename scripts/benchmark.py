"""How fast the hot path is: against the least that plain PyTorch needs, and against what the machine can multiply.

    python scripts/benchmark.py --teacher resnet34 --student resnet18 --dataset cifar10
    python scripts/benchmark.py --hl --json run/benchmark.json

Random weights and random images: no checkpoint and no data set is needed. What is measured: datafree/benchmark.py.
"""

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datafree.arguments import Parser, number
from datafree.data.datasets import DatasetSpec
from datafree.device import Compute
from datafree.entry import run_program
from datafree.flags import distillation_parser
from datafree.run_folder import environment

import registry
from datafree import benchmark, device, task
from datafree.benchmark import MATRICES, HotPath, timed
from main import complete

BATCHES, POOLS = (1, 2, 4), (1_000, 10_000, 100_000)
FLAGS = {  # of main.py, with what they are here unless given; chosen by us to finish in minutes on two cores
    "teacher": "resnet20",
    "student": "resnet8",
    "dataset": "digits",
    "batch_size": 64,
    "g_steps": 10,
    "kd_steps": 40,
    "ngf": 64,
    "p_width": 64,
    "device": "auto",
    "precision": "auto",
}
SWITCHES = ("hl", "compile", "no_compile")


def main(argv: list[str]) -> None:
    options = parsed(argv)
    args = flags_of_main(options, options.batch_size)
    spec, compute = registry.dataset_spec(args), device.choose(args.device, args.precision)
    print(f"{args.teacher} > {args.student}, {spec.name} at {spec.img_size} pixels; {compute}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(args, spec, compute, options.repeats, Path(folder) / "1")
        print(report(found), flush=True)
        if options.growth:
            found["growth"] = growth(options, spec, compute, Path(folder))
            print(growth_report(found["growth"]))
    found |= {"settings": vars(options) | {"json": str(options.json)}, "environment": environment(str(compute))}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def parsed(argv: list[str]) -> Namespace:
    """The command line."""
    parser = Parser(prog="benchmark.py", description="Measure the hot path against its floors.")
    of_main = parser.add_argument_group("flags of main.py, which checks them")
    for name, default in FLAGS.items():
        of_main.add_argument(f"--{name}", default=default, type=type(default), help="see main.py --help")
    for name in SWITCHES:
        of_main.add_argument(f"--{name}", action="store_true", help="see main.py --help")
    own = parser.add_argument_group("benchmark")
    own.add_argument("--repeats", type=number(int, 1), default=5, metavar="N", help="of everything, after a warm-up")
    own.add_argument("--growth", action="store_true", help="also at 2 and 4 times the batch, and with larger pools")
    own.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    return parser.parse_args(argv)


def flags_of_main(options: Namespace, batch_size: int) -> Namespace:
    """The flags of main.py that these options stand for; both batches have the size given."""
    line = [f"--{name}={getattr(options, name)}" for name in FLAGS if name != "batch_size"]
    line += [f"--{name}" for name in SWITCHES if getattr(options, name)]
    line += [f"--batch_size={batch_size}", f"--synthesis_batch_size={batch_size}", "--warmup=0"]
    args = distillation_parser().resolve(line, registry.distillation_preset)
    complete(args)
    return args


def measured(args: Namespace, spec: DatasetSpec, compute: Compute, repeats: int, folder: Path) -> dict[str, Any]:
    """Everything, at one batch size."""
    device.reset_peak_memory(compute.device)
    teacher, student = (
        benchmark.random_classifier(registry.MODELS, name, spec) for name in (args.teacher, args.student)
    )
    args.teacher_path = benchmark.saved(teacher, folder.with_suffix(".pth"))
    floors = benchmark.floors(teacher, student, args, spec.img_size, compute.device)
    built = task.build(args, spec, compute, registry.MODELS)
    with HotPath(args, built, folder) as hot:
        others = {"train": benchmark.training(teacher, args, built)}
        others["unit"] = benchmark.unit(registry.MODELS["resnet18"](10), compute.device)
        times = timed(floors | hot.measures | others, repeats, compute.device)
        memory = device.peak_memory_mb(compute.device)
        flops = {name: benchmark.flops(hot.measures[name]) for name in ("kd", "synth")}
    rate = benchmark.matmul_rate(compute, MATRICES)
    times["kd"], times["train"] = times["kd"].each(args.kd_steps), times["train"].each(benchmark.TRAIN_STEPS)
    flops["kd"] /= args.kd_steps
    return {
        "batch_size": args.batch_size,
        "seconds": {name: {"median": t.median, "spread": t.spread, "all": t.seconds} for name, t in times.items()},
        "ratios": {
            "kd/floor_kd": times["kd"].over(times["floor_kd"]),
            "synth/floor_synth": times["synth"].over(times["floor_synth"]),
            "train/floor_train": times["train"].over(times["floor_train"]),
            "round/unit": times["round"].over(times["unit"]),
        },
        "samples_per_second": {
            "kd": args.batch_size / times["kd"].median,
            "synth": args.batch_size * args.g_steps / times["synth"].median,
            "train": args.batch_size / times["train"].median,
            "eval": HotPath.TEST_IMAGES / times["eval"].median,
        },
        "matmul_tflops": rate / 1e12,
        "share_of_matmul_rate": {name: count / times[name].median / rate for name, count in flops.items()},
        "peak_memory_mb": memory,
        "pool_bytes_per_image": built.pool.bytes_per_image,
    }


def growth(options: Namespace, spec: DatasetSpec, compute: Compute, folder: Path) -> dict[str, Any]:
    """The same at larger batches; a distillation step with larger pools."""
    batches = []
    for factor in BATCHES:
        args = flags_of_main(options, factor * options.batch_size)
        batches.append(measured(args, spec, compute, max(1, options.repeats // 2), folder / f"batch{factor}"))
    args = flags_of_main(options, options.batch_size)
    args.teacher_path = folder / "batch1.pth"
    built = task.build(args, spec, compute, registry.MODELS)
    pools = {str(size): benchmark.filled_pool(built, size) for size in POOLS}
    measures = {
        name: lambda pool=pool: built.distillation.run(pool, args.kd_steps).means() for name, pool in pools.items()
    }
    times = timed(measures, options.repeats, compute.device)
    smallest = times[str(POOLS[0])]
    return {
        "batches": batches,
        "pools": {
            name: {"seconds_a_step": t.median / args.kd_steps, "ratio": t.over(smallest)} for name, t in times.items()
        },
    }


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["", "| | median s | spread |", "|---|---|---|"]
    lines += [f"| {name} | {t['median']:.4g} | ± {100 * t['spread']:.0f} % |" for name, t in found["seconds"].items()]
    lines += ["", *(f"{name}: {ratio:.3f}" for name, ratio in found["ratios"].items())]
    shown = ", ".join(f"{name} {rate:,.0f}" for name, rate in found["samples_per_second"].items())
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found["share_of_matmul_rate"].items())
    return "\n".join(
        [
            *lines,
            f"samples a second: {shown}",
            f"largest matrix product rate here: {found['matmul_tflops']:.3g} TFLOP/s; of it {shares}",
            f"peak memory {found['peak_memory_mb']:,.0f} MiB; pool {found['pool_bytes_per_image']:,} bytes an image",
        ]
    )


def growth_report(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "",
        "| batch | kd samples/s | synth samples/s | kd/floor | synth/floor | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
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
