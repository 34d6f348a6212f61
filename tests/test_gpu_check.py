"""The check of a GPU in its small form, on the CPU; what its page says of targets; what ends a part ends no other."""

import json
import os
import re
import time

import pytest
from conftest import ROOT, user_error
from programs import script

from scripts import gpu_page


def a_benchmark(kd=2.0, floor=10.0, share=0.5):
    """As benchmark.py gives one, seconds made up."""
    seconds = {"kd": kd, "synth": 20.0, "train": 3.0, "floor_kd": floor, "floor_synth": 80.0, "floor_train": 6.0}
    seconds |= {"save": 0.5}
    return {
        "pair": "a > b",
        "images": "32",
        "compute": "cuda",
        "networks": "networks eager",
        "remarks": ["one remark"],
        "batch_size": 256,
        "g_steps": 5,
        "seconds": {name: {"median": value, "spread": 0.1, "all": [value]} for name, value in seconds.items()},
        "ratios": {"kd/floor_kd": kd / floor, "synth/floor_synth": 0.25, "train/floor_train": 0.5},
        "samples_per_second": {"eval": 5000.0},
        "matmul_tflops": 700.0,
        "operations": {"kd": 500.0, "synth": 1000.0},
        "share_of_matmul_rate": {"kd": share, "synth": 0.4},
        "peak_memory_mb": 2048.0,
    }


def found_of(**parts):
    """What a check has found of these parts."""
    outcomes = {name: {"state": "done", "seconds": 1.0, "error": "", "found": found} for name, found in parts.items()}
    return {"began": "today", "small": False, "minutes": 9, "seconds": 5.0, "parts": outcomes}


def verdicts(**parts):
    """By part, of each target in turn."""
    told = {}
    for each in gpu_page.conclusions(found_of(**parts))["targets"]:
        told.setdefault(each["part"], []).append(each["verdict"])
    return told


def test_a_target_is_met_or_missed_by_so_much_or_was_not_measured():
    told = verdicts(wrn=a_benchmark(kd=3.0), resnet=a_benchmark(share=0.36))
    assert {part: each[0] for part, each in told.items()} == {
        "wrn": "**missed** by 0.050 (20 %)",
        "wrn_graph": "not measured",
        "wrn_compiled": "not measured",
        "resnet": "met",
        "resnet_compiled": "not measured",
        "tests": "not measured",
    }
    assert gpu_page.TARGETS[1].verdict(0.28) == "**missed** by 0.070 (20 %)"
    assert [target.verdict(target.bound) for target in gpu_page.TARGETS] == ["met"] * 4


def test_the_paper_s_length_is_judged_in_minutes():
    quick = a_benchmark(kd=0.003)
    quick["seconds"] |= {name: {"median": value} for name, value in (("synth", 0.1), ("save", 0.1))}
    minutes = 420 * (400 * 0.003 + 10 * 0.1 / 5 + 10_000 / 5000 + 0.1) / 60
    assert minutes < 30 and verdicts(wrn=quick)["wrn"][1] == "met"
    quick["seconds"]["kd"] = {"median": 0.006}
    slow = f"**missed** by {minutes + 420 * 400 * 0.003 / 60 - 30:.3f}"
    assert verdicts(wrn=quick)["wrn"][1].startswith(slow)


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (["passed", "passed"], "met"),
        (["passed", "waits", "waits"], "**missed** by 2.000"),
        (["waits", "not reached"], "**missed** by 1.000"),
        (["passed", "not reached"], "not measured"),
        (["passed", "failed"], "not measured"),  # before it could look
        (["skipped", "skipped"], "not measured"),
        ([], "not measured"),
    ],
)
def test_waiting_within_an_epoch_is_judged_by_the_tests_that_look_for_it(outcomes, verdict):
    names = [f"test_sync.py::test_a_round_on_a_gpu_does_not_synchronise[{i}]" for i in range(len(outcomes))]
    elsewhere = {"test": "test_gpu.py::test_memory_does_not_grow", "outcome": "failed", "trace": ["E  synchronizing"]}
    tests, trace = [elsewhere], ["E  RuntimeError: called a synchronizing CUDA operation"]
    for name, outcome in zip(names, outcomes, strict=True):
        if outcome != "not reached":
            failed = "failed" if outcome == "waits" else outcome
            tests.append({"test": name, "outcome": failed, "trace": trace if outcome == "waits" else ["E  1 == 2"]})
    assert verdicts(tests={"tests": tests, "collected": [elsewhere["test"], *names]})["tests"] == [verdict]


def test_some_test_looks_for_waiting_in_both_files():
    for file in ("test_sync.py", "test_gpu.py"):
        assert re.search(gpu_page.DO_NOT_WAIT, (ROOT / "tests" / file).read_text())


def test_the_estimate_is_of_420_epochs_of_400_steps_and_10_iterations_with_evaluation_and_saving():
    estimate = gpu_page.estimate(a_benchmark())
    assert estimate.pop("hours") == pytest.approx(420 * (400 * 2.0 + 10 * 20.0 / 5 + 10_000 / 5000 + 0.5) / 3600)
    assert estimate == {"distillation": 336_000, "synthesis": 16_800, "evaluation": 840, "saving": 210}


def test_the_page_can_be_made_of_whatever_there_is():
    nothing = found_of()
    late = found_of(machine={"card": "A card"}, wrn={"pair": "a > b"}, run={"mark": 70, "flags": "", "runs": {}})
    late["parts"]["tests"] = {"state": "late", "seconds": 9.0, "error": "ended", "said": ["a | b"], "found": {}}
    tests = [
        {
            "test": "tests/t.py::a",
            "outcome": outcome,
            "seconds": 1.0,
            "said": "no | GPU",
            "trace": ["> x"] * (outcome == "failed"),
        }
        for outcome in ("passed", "skipped", "failed")
    ]
    about = {"tests": tests, "collected": ["tests/t.py::a", "tests/t.py::b"]}
    whole = found_of(wrn=a_benchmark() | {"floor_kd_without_tf32": 20.0}, tests=about)
    pages = [gpu_page.page(found | gpu_page.conclusions(found)) for found in (nothing, late, whole)]
    assert all("not measured" in page for page in pages) and "# GPU check: A card" in pages[1]
    assert "- 1 not reached: t.py::b\n" in pages[2]
    assert "1 failed, 1 passed, 1 skipped" in pages[2] and "| t.py::a | failed | 1.0 | no \\| GPU |" in pages[2]
    assert "| over its floor (kd) | 0.200 |" in pages[2] and "| over the floor (kd) without TF32 | 0.100 |" in pages[2]
    assert "## part tests\n\n```\na | b\n```" in pages[1] and "## tests/t.py::a\n\n```\n> x\n```" in pages[2]
    assert "- wrn: one remark" in pages[2] and "| a > b (wrn) | 336,000 |" in pages[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "state", "error"),
    [
        ("sys.exit('no way')", "failed", "status 1: no way"),
        ("os.abort()", "failed", "status -6: not a word"),
        ("import time; time.sleep(60)", "late", "ended after 1 s"),
    ],
)
def test_whatever_ends_a_part_what_it_found_is_kept_and_the_next_one_is_done(act, state, error, tmp_path, monkeypatch):
    program, child = script("gpu_check"), tmp_path / "child.py"
    child.write_text(
        f"import os, sys\nopen(sys.argv[-1], 'w').write('{{\"half\": 1}}')\nif 'one' in sys.argv:\n    {act}\n"
    )
    monkeypatch.setattr(program, "__file__", str(child))
    parts = [program.Part("one", None, 0, 1 if state == "late" else 60), program.Part("two", None, 0, 60)]
    monkeypatch.setattr(program, "SMALL_PARTS", parts)
    began = time.monotonic()
    program.main(["--small", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out/gpu_check.json").read_text())
    assert {name: part["state"] for name, part in found["parts"].items()} == {"one": state, "two": "done"}
    one = found["parts"]["one"]
    assert one["error"] == error and one["found"] == {"half": 1} and time.monotonic() - began < 30
    assert f"| one | {state} |" in (tmp_path / "out/gpu_check.md").read_text()


def test_parts_that_no_longer_fit_are_skipped_and_named(tmp_path):
    program = script("gpu_check")
    program.main(["--small", "--minutes", "0", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {part["state"] for part in found["parts"].values()} == {"skipped"} and len(found["parts"]) == 4
    assert "| run | skipped | 0 | 0 s were left" in (tmp_path / "gpu_check.md").read_text()


def test_what_does_not_fit_together_is_said_before_anything_is_begun(tmp_path):
    program = script("gpu_check")
    with user_error("--data and --teacher_path", "both"):
        program.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    with user_error("there is no", "none"):
        program.main(["--data", str(tmp_path), "--teacher_path", str(tmp_path / "none")])
    with user_error("no such part here: nothing", "machine"):
        program.main(["--small", "--parts", "nothing", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_small_form_does_every_part_and_writes_json_and_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))
    script("gpu_check").main(["--small"])
    folder = tmp_path / "run/gpu_check"
    assert sorted(file.name for file in folder.iterdir()) == ["gpu_check.json", "gpu_check.md"]
    found, page = json.loads((folder / "gpu_check.json").read_text()), (folder / "gpu_check.md").read_text()
    parts = found["parts"]
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys(
        ("machine", "tests", "small", "run"), "done"
    ), page
    tests = parts["tests"]["found"]["tests"]
    assert len(tests) > 30 and {(each["outcome"], each["said"]) for each in tests} >= {("skipped", "no GPU")}
    assert {each["test"].split("::")[0] for each in tests} == {"tests/test_gpu.py", "tests/test_sync.py"}
    assert parts["small"]["found"]["ratios"]["kd/floor_kd"] > 0 < parts["small"]["found"]["operations"]["synth"]
    assert parts["run"]["found"]["runs"].keys() == {"anew", "reuse_common"}
    assert all(each["accuracy_last"] is not None for each in parts["run"]["found"]["runs"].values())
    assert "On a CPU, in its small form" in page and "| not measured |" in page and "## Run" in page
    assert "gpu_check.md after" in capsys.readouterr().out
