"""Names of weights in a file to those of a network: what wrappers put before or within them is taken away.

1. a name that both have is the same weight
2. else the network's names may all stand behind one prefix in the file (model., student.), or the file's may lack one
3. else first the marks of PyTorch's wrappers are taken out on both sides wherever they stand, then what people call the
   network in a network (model, backbone, ...)
4. else head, too, which OpenMMLab puts before the last layer's name
5. else a dot before a number counts for nothing, too: norm.1 and norm1 (torchvision's first DenseNets)

Each step counts only if then all of the network's names are there, and the file has no others beside them: what it has
behind the same prefix that the network has not is another architecture; what it has elsewhere is passed over.
"""

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

MARKS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
WRAPPERS = MARKS | {"model", "net", "network", "backbone", "encoder", "base_model"}
WITH_HEAD = WRAPPERS | {"head"}
RENAMED = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
EXTRA = "_extra_state"  # what a module's get_extra_state gave: anything, not only a tensor
# What a network works out for itself, or a tool counted in it: may be missing, and may be left over
DERIVED = {"num_batches_tracked", "total_ops", "total_params", "position_ids", "attn_mask", EXTRA}
DERIVED |= {"relative_position_index", "relative_coords_table"}
MOST = 2000  # names that are compared letter by letter


@dataclass(frozen=True)
class Match:
    """One way in which a network finds all its names in a file.

    Attributes:
        prefix: what stands before all of them in the file and is taken away ("model.module."), or nothing.
        names: the network's, each with the file's; without derived ones that the file lacks.
        passed_over: the file's that belong to something else.
    """

    prefix: str
    names: dict[str, str]
    passed_over: list[str]


def is_derived(name: str) -> bool:
    """Whether that weight is none, but counted or worked out."""
    return name.rpartition(".")[2] in DERIVED


def is_extra(name: str) -> bool:
    """Whether it names what a module keeps beside its tensors."""
    return name.rpartition(".")[2] == EXTRA


def matches(own: Collection[str], found: Collection[str]) -> list[Match]:
    """All ways to find a network's names in a file's, those of earlier steps first."""
    ways: dict[frozenset[str], Match] = {}
    steps = (frozenset(), False), (MARKS, False), (WRAPPERS, False), (WITH_HEAD, False), (WRAPPERS, True)
    for taken, dotless in steps:
        if ways and (dotless or taken is WITH_HEAD):
            break
        ours, theirs = _plain(own, taken, dotless), _plain(found, taken, dotless)
        if len(ours) < len(own) or len(theirs) < len(found):
            continue  # two names would become one
        for lead in _leads(ours):
            found_here = list(_behind_prefixes({name.removeprefix(lead): ours[name] for name in ours}, theirs))
            for way in found_here:
                ways.setdefault(frozenset(way.names.values()), way)
            if found_here:
                break
    return list(ways.values())


def without_twins(own: Collection[str], found: Collection[str], tied: Collection[Collection[str]]) -> list[str]:
    """A network's names, of those that are ``tied``, which mean one weight, only what a file has, or one."""
    theirs = [f".{name}" for name in _plain(found, WRAPPERS)]
    dropped: set[str] = set()
    for twins in tied:
        there = [
            name for short, name in _plain(twins, WRAPPERS).items() if any(t.endswith(f".{short}") for t in theirs)
        ]
        dropped |= set(twins) - set(there or list(twins)[:1])
    return [name for name in own if name not in dropped]


def difference(own: Collection[str], found: Collection[str]) -> tuple[list[str], list[str]]:
    """What the file lacks and what it has instead, in the words of each side, wrappers apart."""
    ours, theirs = _plain(own, WRAPPERS), _plain(found, WRAPPERS)
    lead = _common(theirs)
    shorter = {name.removeprefix(lead): theirs[name] for name in theirs}
    theirs = shorter if len(shorter.keys() & ours.keys()) > len(theirs.keys() & ours.keys()) else theirs
    missing = [ours[name] for name in ours if name not in theirs and not is_derived(name)]
    return missing, [theirs[name] for name in theirs if name not in ours and not is_derived(name)]


def nearest(names: list[str], among: list[str]) -> list[str]:
    """For each name the one most like it, none twice."""
    chosen: list[str] = []
    for name in names:
        chosen += difflib.get_close_matches(name, [each for each in among if each not in chosen][:MOST], n=1, cutoff=0)
    return chosen


def _plain(names: Collection[str], taken: frozenset[str], dotless: bool = False) -> dict[str, str]:
    """Names without what is taken away (never the last part) and dots before numbers, and what each was."""
    plain = {}
    for name in names:
        *parts, last = name.split(".")
        last = RENAMED.get(last, last) if taken else last
        short = ".".join([part for part in parts if part not in taken] + [last])
        plain[re.sub(r"\.(?=\d+(\.|$))", "", short) if dotless else short] = name
    return plain


def _common(names: Collection[str]) -> str:
    """The longest whole parts that all names begin with, and a dot; or nothing."""
    split = [name.split(".")[:-1] for name in names]
    parts = []
    for column in zip(*split, strict=False):
        if len(set(column)) > 1:
            break
        parts.append(f"{column[0]}.")
    return "".join(parts)


def _leads(ours: Collection[str]) -> list[str]:
    """What the network's own names may have more than the file's: nothing, or one part or more that all begin with."""
    parts = _common([name for name in ours if not is_derived(name)] or ours).split(".")[:-1]
    leads = [""] + ["".join(f"{part}." for part in parts[: at + 1]) for at in range(len(parts))]
    return [lead for lead in leads if all(name.startswith(lead) for name in ours)]


def _behind_prefixes(ours: dict[str, str], theirs: dict[str, str]) -> Iterator[Match]:
    """A match for each prefix behind which all of ``ours`` stand in ``theirs`` and nothing else does."""
    needed = [name for name in ours if not is_derived(name)] or list(ours)
    longest = max(needed, key=len)
    one_layer = any("." not in name for name in needed)  # "weight" and "bias" stand behind every layer's name
    prefixes = [name.removesuffix(longest) for name in theirs if f".{name}".endswith(f".{longest}")]
    full = [
        prefix
        for prefix in prefixes
        if all(prefix + name in theirs for name in needed)
        and not (one_layer and set(prefix.split(".")[:-1]) - WRAPPERS)
    ]
    for prefix in full:
        names = {ours[name]: theirs[prefix + name] for name in ours if prefix + name in theirs}
        taken, others = set(names.values()), tuple(other for other in full if other != prefix)
        rest = {name: raw for name, raw in theirs.items() if raw not in taken and not is_derived(name)}
        copies = tuple(other for other in others if other.startswith(prefix))
        within = wrappers_before(taken)
        if not any(
            name.startswith(prefix) and raw.startswith(within) and not name.startswith(copies)
            for name, raw in rest.items()
        ):
            before = {raw.removesuffix(name) if raw.endswith(name) else None for name, raw in names.items()}
            passed = [raw for name, raw in rest.items() if not name.startswith(others)]
            yield Match(before.pop() if len(before) == 1 and None not in before else prefix, names, passed)


def wrappers_before(names: Collection[str]) -> str:
    """The wrappers that all these names begin with."""
    parts = []
    for part in _common(names).split(".")[:-1]:
        if part not in WRAPPERS:
            break
        parts.append(f"{part}.")
    return "".join(parts)
