"""The benchmark: its arithmetic by hand, its floors the same networks, and a short run of all of it (nothing timed)."""

import json
import os
import signal

import floors
import pytest
import torch
from conftest import CPU, FP32, NGF, NZ, ROOT, SIZE, same_state, small_generator, small_network, state_of, user_error
from floors import Times, floor_kd, floor_synth, floor_train, flops, matmul_rate, plain_generator, timed
from programs import script


def test_times_give_median_spread_and_the_median_of_ratios_within_a_repeat():
    slow, fast = Times([2.0, 4.0, 9.0]), Times([1.0, 4.0, 3.0])
    assert slow.median == 4 and slow.spread == (9 - 2) / 2 / 4
    assert slow.over(fast) == 2  # of 2, 1, 3
    assert slow.each(2).seconds == [1, 2, 4.5]


def test_measures_take_turns_and_the_warm_up_does_not_count():
    calls = []
    times = timed({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, device=CPU, warm_up=1)
    assert calls == ["a", "b"] * 3 and [len(each.seconds) for each in times.values()] == [2, 2]


def test_the_plain_generator_is_the_real_one_with_its_up_samplings_written_out():
    real, plain = small_generator(), plain_generator(NZ, NGF, (3, SIZE, SIZE))
    plain.load_state_dict(real.state_dict())
    z = torch.randn(3, NZ)
    torch.testing.assert_close(plain.eval()(z), real.eval()(z))
    assert flops(lambda: plain(z)) > flops(lambda: real(z))


def test_floors_move_copies_and_leave_the_networks_alone():
    teacher, student = small_network(1), small_network(2)
    before = state_of(teacher), state_of(student)
    x = torch.randn(4, 3, SIZE, SIZE)
    generator = plain_generator(NZ, NGF, (3, SIZE, SIZE))
    made = state_of(generator)
    for floor in (
        floor_kd(teacher, student, x),
        floor_synth(teacher, student, generator, 4, 2),
        floor_train(teacher, x),
    ):
        floor()
        assert same_state(state_of(teacher), before[0]) and same_state(state_of(student), before[1])
    assert not same_state(state_of(generator), made)


def notes(path):
    """Measures that write down where they are called."""
    return {name: lambda name=name: path.write_text(f"{name} {os.getpid()}") for name in ("a", "b")}


@pytest.mark.slow
def test_measures_are_made_and_called_in_a_process_of_their_own(tmp_path):
    measures, found = floors.elsewhere(notes, tmp_path / "note"), []
    for name in ("b", "a", "b"):
        measures[name]()
        found.append((tmp_path / "note").read_text().split())
    assert [name for name, _ in found] == ["b", "a", "b"] and list(measures) == ["a", "b"]
    assert len({process for _, process in found} | {str(os.getpid())}) == 2
    os.kill(int(found[0][1]), signal.SIGKILL)
    for _ in range(2):
        with user_error("the floors' process has ended"):
            measures["a"]()


@pytest.mark.slow
def test_floors_of_these_networks_and_flags_can_be_made_there():
    program = script("benchmark")
    options = program.parsed(["--batch_size", "2", "--g_steps", "1", "--ngf", "4"])
    teacher, student = small_network(1), small_network(2)
    measures = floors.elsewhere(
        floors.floors, teacher, student, program.flags_of_main(options, 2), (3, SIZE, SIZE), CPU
    )
    for name in ("floor_kd", "floor_synth", "floor_train"):
        measures[name]()
    assert "unit" in measures and not next(teacher.parameters()).is_shared()


def test_operations_are_two_a_multiplication():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_operations_started_are_counted_with_those_of_the_backward_pass():
    x = torch.ones(3)
    assert floors.operations(lambda: x.exp().sum()) == 2
    x.requires_grad_()
    assert floors.operations(lambda: x.exp().sum().backward()) > floors.operations(lambda: x.exp().sum())


def test_the_fastest_product_of_any_size_counts(monkeypatch):
    took = {2: (1.0, 0.5), 4: (8.0, 0.25)}  # seconds as a product, as a convolution
    sizes = iter(took)

    def timed(ways, *_):
        return {way: Times([seconds]) for way, seconds in zip(ways, took[next(sizes)], strict=True)}

    monkeypatch.setattr(floors, "timed", timed)
    assert matmul_rate(FP32, sizes=(2, 4)) == 2 * 4**3 / 0.25


def test_both_ways_to_ask_for_a_product_give_one(monkeypatch):
    asked = []
    monkeypatch.setattr(floors, "timed", lambda ways, *_: asked.append(ways) or dict.fromkeys(ways, Times([1.0])))
    torch.manual_seed(4)
    a = torch.randn(8, 8)
    torch.manual_seed(4)
    matmul_rate(FP32, sizes=(8,))
    product, conv = (way() for way in asked[0].values())
    torch.testing.assert_close(product, a @ a)
    torch.testing.assert_close(conv[0, :, 0], a @ a.T)


@pytest.mark.slow
def test_the_benchmark_runs_to_its_end_and_writes_every_number(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    program, file = script("benchmark"), tmp_path / "new" / "numbers.json"
    monkeypatch.setattr(program, "BATCHES", (1, 2))
    monkeypatch.setattr(program, "POOLS", (20, 40))
    monkeypatch.setattr(program, "elsewhere", lambda make, *args: make(*args))
    monkeypatch.setattr(floors, "unit", lambda network, device: lambda: torch.ones(9).exp())
    monkeypatch.setattr(program, "matmul_rate", lambda compute, sizes: 1e9)
    monkeypatch.setattr(program, "TEST_IMAGES", 16)
    tiny = "--repeats 1 --batch_size 4 --g_steps 1 --kd_steps 1 --ngf 8 --p_width 4 --precision fp32 --hl --growth"
    program.main([*tiny.split(), "--json", str(file)])
    found, printed = json.loads(file.read_text()), capsys.readouterr().out
    names = {"floor_kd", "floor_synth", "floor_train"}
    names |= {"kd", "synth", "train", "attack", "eval", "save", "round", "unit"}
    assert found["seconds"].keys() == names and all(each["median"] > 0 for each in found["seconds"].values())
    of_one = found["seconds"]["kd"]["median"] / found["seconds"]["floor_kd"]["median"]
    assert found["ratios"]["kd/floor_kd"] == pytest.approx(of_one)
    assert found["pool_bytes_per_image"] == 2 * 3072 + 8 and found["settings"]["batch_size"] == 4
    assert [row["batch_size"] for row in found["growth"]["batches"]] == [4, 8]
    assert list(found["growth"]["pools"]) == ["20", "40"] and found["growth"]["pools"]["20"]["ratio"] == 1
    assert found["networks"] == "networks eager" and found["remarks"] == [] and min(found["operations"].values()) > 100
    assert "kd/floor_kd" in printed and "a synthesis iteration" in printed and "| pool images |" in printed
