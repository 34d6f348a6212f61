"""Streams of random numbers: reproducible, independent of each other and of the global generator."""

import hashlib

import pytest
import torch
from conftest import user_error
from torch import nn

from datafree.engine.randomness import (
    Streams,
    global_draws_forgotten,
    global_states,
    initialising,
    seed_for,
    set_global_states,
)


def test_a_seed_is_the_first_63_bits_of_a_hash_of_run_and_purpose():
    digest = hashlib.sha256(b"7/synthesis").digest()
    assert seed_for(7, "synthesis") == sum(byte << (8 * i) for i, byte in enumerate(digest[:8])) // 2
    assert 0 <= seed_for(2**63 - 1, "x") < 2**63


def test_a_stream_depends_on_seed_and_name_alone_and_is_at_its_beginning_again_whenever_asked():
    torch.manual_seed(3)
    before, streams = torch.get_rng_state(), Streams(0)
    first = torch.rand(5, generator=streams["a"])
    assert not torch.equal(torch.rand(5, generator=streams["a"]), first)
    assert torch.equal(torch.rand(5, generator=Streams(0)["a"]), first)
    for _ in range(2):
        assert torch.equal(torch.rand(5, generator=streams.again("a")), first)
    for seed, name in ((0, "b"), (1, "a")):
        assert not torch.equal(torch.rand(5, generator=Streams(seed)[name]), first)
    assert torch.equal(torch.rand(5, generator=streams["b"]), torch.rand(5, generator=Streams(0)["b"]))
    assert torch.equal(torch.get_rng_state(), before)


def on_another_device(seed):
    """Streams that believe that theirs is a GPU."""
    streams = Streams(seed)
    streams.device = torch.device("cuda")
    return streams


@pytest.mark.parametrize("make", [Streams, on_another_device])
def test_states_survive_a_file_and_put_streams_back_where_they_were_those_of_the_host_too(make, tmp_path):
    streams, other = make(0), make(0)
    torch.rand(4, generator=streams.on_host("b"))
    torch.save(streams.state_dict(), tmp_path / "streams.pth")
    expected = [torch.rand(5, generator=streams.on_host(name)) for name in ("b", "never used before")]
    torch.rand(50, generator=other.on_host("b"))
    other.load_state_dict(torch.load(tmp_path / "streams.pth", weights_only=True))
    found = [torch.rand(5, generator=other.on_host(name)) for name in ("b", "never used before")]
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert (streams.on_host("b") is streams._generators.get("b")) == (make is Streams)


def test_states_of_another_kind_of_device_are_refused():
    with user_error("not begun on a cpu device", "--device"):
        Streams(0).load_state_dict({"a": torch.zeros(16, dtype=torch.uint8)})  # what a GPU's generator has


def test_initialisation_depends_on_seed_and_name_alone_and_leaves_the_global_generator_alone():
    def layer(seed, name, noise):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        with initialising(seed, name):
            weight = nn.Linear(4, 4).weight
        assert torch.equal(torch.get_rng_state(), before)
        return weight

    assert torch.equal(layer(0, "g1", 1), layer(0, "g1", 2))
    assert not torch.equal(layer(0, "g1", 1), layer(0, "g2", 1))
    assert not torch.equal(layer(0, "g1", 1), layer(1, "g1", 1))


def test_initialisation_wakes_no_gpu(monkeypatch):
    def woken(*_, **__):
        pytest.fail("the GPU was asked for something")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("_lazy_init", "init", "get_rng_state", "set_rng_state", "manual_seed_all", "current_device"):
        monkeypatch.setattr(torch.cuda, name, woken)
    with initialising(0, "g1"):
        nn.Linear(4, 4)


def test_global_draws_are_forgotten_whatever_happens_meanwhile():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), global_draws_forgotten():
        torch.manual_seed(5)
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_global_states_are_of_the_gpus_in_use_too_and_go_back_to_as_many(monkeypatch):
    gpus, put = [torch.tensor([1]), torch.tensor([2])], {}
    monkeypatch.setattr(torch.xpu, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.xpu, "get_rng_state_all", lambda: gpus)
    monkeypatch.setattr(torch.xpu, "set_rng_state_all", lambda states: put.update(xpu=states))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([3]))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: put.update(mps=state))
    states = global_states()
    for count, found in ((1, {"mps"}), (2, {"mps", "xpu"})):
        monkeypatch.setattr(torch.xpu, "device_count", lambda count=count: count)
        put.clear()
        set_global_states(states)
        assert put.keys() == found
    assert put == {"xpu": gpus, "mps": torch.tensor([3])}
    set_global_states({"cpu": states["cpu"], "cuda": []})  # as earlier versions saved them
