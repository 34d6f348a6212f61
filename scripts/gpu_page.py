"""What gpu_check.py concludes from what its parts found, and its page in Markdown.

A target is met or missed by so much. The estimate is of a run as long as the paper's, from the seconds measured:

    EPOCHS * (STEPS distillation steps + ITERATIONS generator iterations + TEST_IMAGES evaluated + saving)

Its epochs of warm-up are counted as the others, which is too much by a twentieth; loading is left out.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EPOCHS, STEPS, ITERATIONS, TEST_IMAGES = 420, 400, 10, 10_000  # of a run on CIFAR; ITERATIONS once an epoch
BENCHMARKS = ("wrn", "wrn_graph", "wrn_compiled", "resnet", "resnet_compiled", "small")  # parts
TESTS = ("tests", "tests_slow")  # parts
DO_NOT_WAIT = "do(es)?_not_synchronise"  # names of the tests in which PyTorch refuses to wait for the GPU
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A bound on a number of a part.

    Attributes:
        about: what is bounded, for the page.
        parts: that give the number.
        read: the number, of everything found and the name of a part; None where it was not measured.
        bound: what it is to be at most, or at least where ``least``.
    """

    about: str
    parts: tuple[str, ...]
    read: Callable[[Found, str], float | None]
    bound: float
    least: bool = False

    def missed_by(self, value: float) -> float:
        """0 where it is met."""
        return max(0.0, self.bound - value if self.least else value - self.bound)

    def verdict(self, value: float | None) -> str:
        """In words."""
        if value is None:
            return "not measured"
        missed = self.missed_by(value)
        share = f" ({100 * missed / self.bound:.0f} %)" if self.bound else ""
        return f"**missed** by {missed:.3f}{share}" if missed else "met"


def of_benchmark(group: str, name: str) -> Callable[[Found, str], float | None]:
    """Reads a number that a benchmark has in that group under that name."""
    return lambda found, part: benchmarks(found)[part][group][name] if part in benchmarks(found) else None


def minutes_of_the_estimate(found: Found, part: str) -> float | None:
    measured = benchmarks(found)
    return 60 * estimate(measured[part])["hours"] if part in measured else None


def synchronising(found: Found, part: str) -> float | None:
    """How many tests found that an epoch's work waits for the GPU; None where one of them could not look."""
    about = of_part(found, part)
    outcomes = {each["test"]: each for each in about.get("tests", [])}
    names = [test for test in about.get("collected", ()) if re.search(DO_NOT_WAIT, test)]
    waits = [name for name in names if "synchronizing" in " ".join(outcomes.get(name, {}).get("trace", ()))]
    passed = [name for name in names if outcomes.get(name, {}).get("outcome") == "passed"]
    return float(len(waits)) if names and (waits or len(passed) == len(names)) else None


WRN = ("wrn", "wrn_graph", "wrn_compiled")
TARGETS = (
    Target(
        "wrn40_2 > wrn16_1: a distillation step over its eager fp32 floor, TF32 in its products",
        *(WRN, of_benchmark("ratios", "kd/floor_kd"), 0.25),
    ),
    Target(
        "resnet34 > resnet18: share of the measured matrix product rate in a distillation step",
        *(("resnet", "resnet_compiled"), of_benchmark("share_of_matmul_rate", "kd"), 0.35, True),
    ),
    Target("tests in which the work of an epoch waits for the GPU", ("tests",), synchronising, 0),
    Target(f"wrn40_2 > wrn16_1: minutes of {EPOCHS} epochs, estimated", WRN, minutes_of_the_estimate, 30),
)


def of_part(found: Found, name: str) -> dict[str, Any]:
    """What a part found; empty where it did not."""
    return found["parts"].get(name, {}).get("found", {})


def all_tests(found: Found) -> list[dict[str, Any]]:
    """Their outcomes, of both parts."""
    return [each for part in TESTS for each in of_part(found, part).get("tests", [])]


def benchmarks(found: Found) -> dict[str, Found]:
    """Those that came to their end, by part."""
    return {name: of_part(found, name) for name in BENCHMARKS if "seconds" in of_part(found, name)}


def conclusions(found: Found) -> dict[str, Any]:
    """Targets and estimates, as plain values."""
    measured, targets = benchmarks(found), []
    for target in TARGETS:
        for part in target.parts:
            value = target.read(found, part)
            told = {"target": target.about, "part": part, "bound": target.bound, "at_least": target.least}
            targets.append(told | {"value": value, "verdict": target.verdict(value)})
    return {"targets": targets, "estimates": {name: estimate(each) for name, each in measured.items()}}


def estimate(benchmark: Found) -> dict[str, float]:
    """Seconds of the paper-length run's parts, and its hours, with the networks and batch of that benchmark."""
    seconds = {name: each["median"] for name, each in benchmark["seconds"].items()}
    evaluation = TEST_IMAGES / benchmark["samples_per_second"]["eval"]
    an_epoch = {
        "distillation": STEPS * seconds["kd"],
        "synthesis": ITERATIONS * seconds["synth"] / benchmark["g_steps"],
        "evaluation": evaluation,
        "saving": seconds["save"],
    }
    whole = {name: EPOCHS * value for name, value in an_epoch.items()}
    return whole | {"hours": sum(whole.values()) / 3600}


def page(found: Found) -> str:
    """Markdown."""
    sections = [heading(found), parts(found), tests(found), targets(found), speed(found), lengths(found), run(found)]
    return "\n".join(line for section in [*sections, failures(found)] for line in section).rstrip() + "\n"


def heading(found: Found) -> list[str]:
    about = of_part(found, "machine")
    where = about.get("card", "no GPU" if found["small"] else "unknown card")
    lines = [f"# GPU check: {where}", ""]
    if found["small"]:
        lines += ["**On a CPU, in its small form**: it shows that the parts work. Its times say nothing of a GPU.", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    return [*lines, f"- began {found['began']}, took {found['seconds']:.0f} s of at most {60 * found['minutes']:.0f} s"]


def parts(found: Found) -> list[str]:
    rows = [(name, p["state"], f"{p['seconds']:.0f}", p["error"]) for name, p in found["parts"].items()]
    return ["", "## Parts", "", *table(("part", "how it ended", "s", ""), rows)]


def tests(found: Found) -> list[str]:
    outcomes = all_tests(found)
    left = [
        test.removeprefix("tests/")
        for part in TESTS
        for test in of_part(found, part).get("collected", ())
        if test not in {each["test"] for each in outcomes}
    ]
    counts = Counter(each["outcome"] for each in outcomes)
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "none was run"
    reasons = Counter(each["said"] for each in outcomes if each["outcome"] == "skipped")
    rows = [(t["test"].removeprefix("tests/"), t["outcome"], t["seconds"], t["said"]) for t in outcomes]
    shown = [row for row in rows if row[1] != "skipped"]
    lines = ["", "## Tests marked gpu", "", f"{said}.", *(f"- {n} skipped: {why}" for why, n in reasons.items())]
    lines += [f"- {len(left)} not reached: {', '.join(left)}"] if left else []
    return [*lines, "", *(table(("test", "outcome", "s", "said"), shown) if shown else [])]


def targets(found: Found) -> list[str]:
    rows = []
    for each in found["targets"]:
        value = "" if each["value"] is None else f"{each['value']:.3f}"
        bound = f"{'at least' if each['at_least'] else 'at most'} {each['bound']}"
        rows.append((each["target"], each["part"], value, bound, each["verdict"]))
    return ["", "## Targets", "", *table(("", "part", "measured", "target", ""), rows)]


def speed(found: Found) -> list[str]:
    """A column a benchmark."""
    measured = benchmarks(found)
    lines = ["", "## Speed", ""]
    if not measured:
        return [*lines, "Not measured."]
    columns = {name: numbers(each) for name, each in measured.items()}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [(name, *(column.get(name, "") for column in columns.values())) for name in names]
    remarks = [f"- {name}: {remark}" for name, each in measured.items() for remark in each["remarks"]]
    return [*lines, *table(("", *columns), rows), "", *ABOUT_SPEED, *remarks]


ABOUT_SPEED = [
    "Floors are plain PyTorch: eager, fp32, on a GPU with TF32 in its products; the floor without TF32 stands beside.",
    "Operations are those dispatched eagerly, backward passes included, whether or not the networks are compiled; an",
    "iteration's with its share of what is done once a round.",
    "Peak memory is with the floors' networks; that of a run is below.",
]


def numbers(benchmark: Found) -> dict[str, str]:
    """What the table says of one benchmark."""
    seconds, shares, started = benchmark["seconds"], benchmark["share_of_matmul_rate"], benchmark["operations"]
    told = {"networks": f"{benchmark['pair']}, {benchmark['networks'].removeprefix('networks ')}"}
    told["batch, pixels"] = f"{benchmark['batch_size']}, {benchmark['images']}"
    told["precision"] = benchmark["compute"]
    for name, what in (("kd", "distillation step"), ("synth", f"round of {benchmark['g_steps']} iterations")):
        told[f"{what}, ms"] = milliseconds(seconds[name])
        told[f"its floor ({name}), ms"] = milliseconds(seconds[f"floor_{name}"])
        told[f"over its floor ({name})"] = f"{benchmark['ratios'][f'{name}/floor_{name}']:.3f}"
    without = benchmark.get("floor_kd_without_tf32")
    if without is not None:
        told["floor (kd) without TF32, ms"] = f"{1000 * without:.3g}"
        told["over the floor (kd) without TF32"] = f"{seconds['kd']['median'] / without:.3f}"
    told["training step of the teacher, ms"] = milliseconds(seconds["train"])
    told["over its floor (train)"] = f"{benchmark['ratios']['train/floor_train']:.3f}"
    told["saving, ms"] = milliseconds(seconds["save"])
    told["largest matrix product rate, TFLOP/s"] = f"{benchmark['matmul_tflops']:.4g}"
    told["share of it, distillation / synthesis"] = f"{100 * shares['kd']:.1f} % / {100 * shares['synth']:.1f} %"
    told["operations a distillation step / iteration"] = f"{started['kd']:.0f} / {started['synth']:.0f}"
    told["peak memory, MiB"] = f"{benchmark['peak_memory_mb'] or 0:,.0f}"
    return told


def milliseconds(times: Found) -> str:
    return f"{1000 * times['median']:.3g} ± {100 * times['spread']:.0f} %"


def lengths(found: Found) -> list[str]:
    """The estimates."""
    lines = ["", f"## A run of {EPOCHS} epochs of {STEPS} steps and {ITERATIONS} iterations, estimated", ""]
    if not found["estimates"]:
        return [*lines, "Not measured."]
    rows = []
    for part, each in found["estimates"].items():
        seconds = [f"{value:,.0f}" for name, value in each.items() if name != "hours"]
        rows.append((f"{of_part(found, part)['pair']} ({part})", *seconds, f"{each['hours']:.2f}"))
    names = [f"{name} s" for name in next(iter(found["estimates"].values())) if name != "hours"]
    return [*lines, *table(("networks", *names, "hours"), rows)]


def run(found: Found) -> list[str]:
    about = of_part(found, "run")
    lines = ["", "## Run", ""]
    if not about:
        return [*lines, "Not made."]
    rows = []
    for mode, each in about["runs"].items():
        reached = "not reached" if each["seconds"] is None else f"{each['seconds']:.1f} (epoch {each['epoch']})"
        last = [each["start"], each["accuracy_last"], each["accuracy_teacher"], each["seconds_total"]]
        rows.append((mode, reached, *map(decimal, last), decimal(each["peak_memory_mb"])))
    header = ("mode", f"s to {about['mark']:.0f} %", "s to epoch 1", "last %", "teacher %", "s in all", "peak MiB")
    return [*lines, f"`main.py {about['flags']}`", "", *table(header, rows)]


def failures(found: Found) -> list[str]:
    """The last lines of what failed tests, and parts that did not come to their end, have said."""
    said = {each["test"]: each["trace"] for each in all_tests(found) if each.get("trace")}
    said |= {f"part {name}": each["said"] for name, each in found["parts"].items() if each.get("said")}
    return [line for name, lines in said.items() for line in ("", f"## {name}", "", "```", *lines, "```")]


def decimal(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Markdown; what a cell says stays in it."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return [f"| {' | '.join(line)} |" for line in cells]
