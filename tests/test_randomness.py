"""Streams of random numbers: reproducible, independent of each other and of the global generator."""

import hashlib

import torch
from datafree.randomness import Streams, initialising, seed_for
from torch import nn


def test_a_seed_is_the_first_63_bits_of_a_hash_of_run_and_purpose():
    digest = hashlib.sha256(b"7/synthesis").digest()
    assert seed_for(7, "synthesis") == sum(byte << (8 * i) for i, byte in enumerate(digest[:8])) // 2
    assert 0 <= seed_for(2**63 - 1, "x") < 2**63


def test_seeds_differ_between_runs_and_between_purposes():
    seeds = {seed_for(seed, name) for seed in range(20) for name in ("g1", "g2", "d", "student", "synthesis")}
    assert len(seeds) == 100


def test_a_stream_gives_the_same_numbers_for_the_same_seed_and_name_and_others_otherwise():
    def numbers(seed, name):
        return torch.rand(5, generator=Streams(seed)[name])

    assert torch.equal(numbers(0, "a"), numbers(0, "a"))
    assert not torch.equal(numbers(0, "a"), numbers(0, "b")) and not torch.equal(numbers(0, "a"), numbers(1, "a"))


def test_a_stream_goes_on_where_it_was_left():
    streams = Streams(0)
    pieces = [torch.rand(3, generator=streams["a"]) for _ in range(2)]
    assert torch.equal(torch.cat(pieces), torch.rand(6, generator=Streams(0)["a"]))


def test_drawing_from_one_stream_leaves_the_others_and_the_global_generator_alone():
    before = torch.get_rng_state()
    streams = Streams(0)
    torch.rand(100, generator=streams["a"])
    assert torch.equal(torch.rand(5, generator=streams["b"]), torch.rand(5, generator=Streams(0)["b"]))
    assert torch.equal(torch.get_rng_state(), before)


def test_states_survive_a_file_and_put_streams_back_where_they_were(tmp_path):
    streams = Streams(0)
    torch.rand(3, generator=streams["a"])
    torch.rand(4, generator=streams["b"])
    torch.save(streams.state_dict(), tmp_path / "streams.pth")
    expected = [torch.rand(5, generator=streams[name]) for name in ("a", "b", "never used before")]
    other = Streams(0)
    torch.rand(50, generator=other["a"])
    other.load_state_dict(torch.load(tmp_path / "streams.pth", weights_only=True))
    found = [torch.rand(5, generator=other[name]) for name in ("a", "b", "never used before")]
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_initialisation_depends_on_seed_and_name_and_not_on_what_was_drawn_before():
    def layer(seed, name, noise):
        torch.manual_seed(noise)
        with initialising(seed, name):
            return nn.Linear(4, 4).weight

    assert torch.equal(layer(0, "g1", 1), layer(0, "g1", 2))
    assert not torch.equal(layer(0, "g1", 1), layer(0, "g2", 1))
    assert not torch.equal(layer(0, "g1", 1), layer(1, "g1", 1))


def test_initialisation_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    with initialising(0, "g1"):
        nn.Linear(4, 4)
    assert torch.equal(torch.get_rng_state(), before)
