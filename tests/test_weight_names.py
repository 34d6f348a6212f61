"""Names in a file to names of a network: wrappers go only where all of the network's names are there then."""

import pytest

from datafree.weights.names import difference, matches, nearest

OWN = ["conv1.weight", "bn1.weight", "bn1.num_batches_tracked", "layer.0.conv.weight", "fc.weight", "fc.bias"]


def renamed(rename, own=OWN):
    return [rename(name) for name in own]


def only(own, found):
    """The one match."""
    (match,) = matches(own, found)
    return match


WRAPPED = {
    "DataParallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "both, the other way round": lambda name: f"_orig_mod.module.{name}",
    "twice": lambda name: f"module.module.{name}",
    "FSDP": lambda name: "_fsdp_wrapped_module." + name.replace("layer.0.", "layer.0._fsdp_wrapped_module."),
    "checkpointing": lambda name: name.replace("layer.0.", "layer.0._checkpoint_wrapped_module."),
    "a compiled block": lambda name: name.replace("layer.", "layer._orig_mod."),
    "Lightning": lambda name: f"model.{name}",
    "Lightning, compiled": lambda name: f"model._orig_mod.{name}",
    "a network in a network": lambda name: f"net.backbone.{name}",
    "a name of one's own": lambda name: f"my_network.{name}",
    "a backbone and a head": lambda name: name if name.startswith("fc") else f"backbone.{name}",
    "OpenMMLab": lambda name: f"head.{name}" if name.startswith("fc") else f"backbone.{name}",
    "that within Lightning": lambda name: "model." + (name if name.startswith("fc") else f"encoder.module.{name}"),
    "DataParallel of a part": lambda name: name if name.startswith("fc") else f"module.{name}",
}


@pytest.mark.parametrize("how", WRAPPED)
def test_whatever_wraps_the_names_goes_in_the_file_and_in_the_network(how):
    wrapped = renamed(WRAPPED[how])
    assert only(OWN, wrapped).names == dict(zip(OWN, wrapped, strict=True))
    assert only(wrapped, OWN).names == dict(zip(wrapped, OWN, strict=True))
    assert only(wrapped, renamed(WRAPPED["both"])).names == dict(zip(wrapped, renamed(WRAPPED["both"]), strict=True))


def test_what_fits_as_it_is_is_never_changed():
    for name in ("module.conv.weight", "model.module.weight", "encoder.net.weight", "_orig_mod.a.weight"):
        own = [name, "fc.weight"]
        assert only(own, own).names == {each: each for each in own} and only(own, own).prefix == ""


def test_a_file_with_names_beside_the_networks_under_the_same_prefix_does_not_fit():
    for prefix in ("", "module.", "model.", "student."):
        found = [prefix + name for name in [*OWN, "layer.1.conv.weight"]]
        assert matches(OWN, found) == []


def test_what_lies_beside_the_prefix_is_passed_over():
    found = [*renamed(WRAPPED["Lightning"]), "criterion.weight", "metric.total"]
    assert only(OWN, found).passed_over == ["criterion.weight", "metric.total"] and only(OWN, found).prefix == "model."
    own = renamed(WRAPPED["Lightning"])
    assert only(own, found).passed_over == ["criterion.weight", "metric.total"] and only(own, found).prefix == ""


@pytest.mark.parametrize("missing", OWN)
def test_all_names_have_to_be_there_but_for_counters(missing):
    found = [f"module.{name}" for name in OWN if name != missing]
    assert bool(matches(OWN, found)) == (missing == "bn1.num_batches_tracked")


@pytest.mark.parametrize(
    "more",
    ["bn2.num_batches_tracked", "total_ops", "layer.0.total_params", "a.position_ids", "relative_position_index"],
)
def test_counters_and_what_networks_work_out_may_be_left_over(more):
    assert only(OWN, [*OWN, more]).passed_over == []


def test_of_several_copies_each_is_a_match_with_its_prefix():
    found = [f"{who}.net.{name}" for who in ("student", "teacher") for name in OWN]
    assert [match.prefix for match in matches(OWN, found)] == ["student.net.", "teacher.net."]
    inside = [*OWN, *(f"ema.{name}" for name in OWN)]
    assert [match.prefix for match in matches(OWN, inside)] == ["", "ema."]


def test_names_that_would_become_one_are_left_alone():
    own = ["encoder.conv.weight", "decoder.conv.weight", "conv.weight"]
    assert matches(own, [name.replace("encoder.", "model.") for name in own]) == []


def test_one_layer_does_not_fit_any_layer_of_a_larger_network():
    for own in (["weight", "bias"], ["fc.weight", "fc.bias"], ["model.weight", "model.bias"]):
        assert matches(own, ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]) == []
        assert only(own, [f"module.{name}" for name in own]).prefix == "module."


def test_a_difference_is_in_the_words_of_each_side_wrappers_apart():
    found = [f"module.{name}" for name in OWN if name != "fc.bias"] + ["module.linear.bias"]
    assert difference(OWN, found) == (["fc.bias"], ["module.linear.bias"])
    assert difference(OWN, [f"student.{name}" for name in OWN[:-1]]) == (["fc.bias"], [])


def test_the_nearest_names_are_the_most_alike_and_none_twice():
    among = ["linear.weight", "linear.bias", "layer1.0.conv.weight"]
    assert nearest(["fc.bias", "fc.weight"], among) == ["linear.bias", "linear.weight"]
    assert sorted(nearest(["fc.weight", "b", "c", "d"], among)) == sorted(among)
