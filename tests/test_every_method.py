"""What holds for every method of the registry: runs whole and interrupted, costs, targets, teachers of any kind."""

import copy
import math

import pytest
import torch
from conftest import (
    CLASSES,
    FP16,
    FP32,
    MEAN,
    SIZE,
    STD,
    same_state,
    small_context,
    state_of,
    user_error,
    without_overflow,
)
from programs import OF_LENET, at_epoch, error_of, few_digits, finished, json_of, rows_of, run  # noqa: F401
from test_aeahl_rg import context_of

import registry
from datafree.api import distil
from datafree.cli.flags import distillation_configs
from datafree.cli.parser import Parser
from datafree.data.augmentation import Augmentation
from datafree.data.specs import TensorImages
from datafree.engine.device import Compute
from datafree.engine.frozen import frozen
from datafree.engine.student import Student
from datafree.errors import UserError
from datafree.methods.real_images import Kd, Scratch
from datafree.models.classifier import Classifier
from datafree.targets import Attack
from scripts.kill_test import differences

SMALL = "--epochs 3 --warmup 1 --kd_steps 2 --batch_size 8 --precision fp32 --echo 1"
OWN = {  # flags that make each small
    "aeahl_rg": "--synthesis_batch_size 8 --g_steps 2 --nz 16 --ngf 4",
    "fast_meta": "--synthesis_batch_size 8 --g_steps 2 --nz 16 --ngf 4 --reset_l0 0.7 --meta reptile",
    "fast": "--synthesis_batch_size 8 --g_steps 2 --nz 16 --ngf 4 --reset_l0 0.7",
    "nayer": "--synthesis_batch_size 12 --loops 1 --warmup_loops 2 --g_steps 2 --noise_width 9 --ngf 4 --g_life 2",
    "cmi": "--synthesis_batch_size 8 --g_steps 2 --nz 16 --ngf 4 --bank_size 12 --negatives 10",  # full at round 2
    "deepinversion": "--synthesis_batch_size 8 --g_steps 2 --adi 1",
    **dict.fromkeys(("dafl", "dfq"), "--ep_steps 2 --nz 16 --ngf 4"),
    **dict.fromkeys(("zskt", "dfad", "mad"), "--ep_steps 2 --nz 16 --ngf 4 --warmup 0"),
    "kd": "--warmup 0",
    "noise": "--synthesis_batch_size 8",
    "scratch": "--warmup 0",
}
NO_TEACHER = {"scratch"}  # does not ask it
UNSEEN = {"kd"}  # shows the attack no images to learn from
FIRST_OF_KIND = {  # the others have their classes: deeper, wider, or of bottlenecks
    *("wrn16_1", "resnet8", "resnet18", "vgg8", "shufflenetv2", "mobilenetv2"),
    *("lenet5", "lenet5_bn", "resnet18_imagenet"),
}
LOOK_INSIDE = ("aeahl_rg", "cmi")  # at BatchNorm's statistics, and at what stages give
WITHOUT_BN = "timm:vit_tiny_patch16_224,img_size=32,patch_size=16,embed_dim=8,depth=1,num_heads=1"


def line(name, *more):
    return [*SMALL.split(), "--method", name, *OF_LENET, *OWN[name].split(), *more]


def small(name, context, more=""):
    """The method, in a run of four rounds."""
    method = registry.METHODS[name]
    context.rounds, context.training_images = 4, few_images
    parser = Parser("", "", distillation_configs(method, name, "soft"))
    values = parser.resolve([*SMALL.split(), *OWN[name].split(), *more.split()])
    method.complete(values)
    return method(context, method.Config.of(values))


def few_images():
    return TensorImages(torch.zeros(9, 3, SIZE, SIZE, dtype=torch.uint8), torch.arange(9) % CLASSES)


def folder_in(root):
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    return folder


@pytest.mark.parametrize("name", ["cmi", "deepinversion", "kd", "nayer", "noise", "scratch"])
def test_a_generator_to_begin_with_is_refused_where_none_lasts(name):
    assert "--reuse_path belongs to methods " in error_of(line(name, "--reuse_path", "generator.pth"))


@pytest.fixture(scope="module", params=registry.METHODS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def whole(name, tmp_path_factory):
    """The folder of a tiny run."""
    root = tmp_path_factory.mktemp(name)
    finished(line(name, "--run_root", root))
    return folder_in(root)


def both(network, images):
    return {f"{network}_forward": images, f"{network}_backward": images}


def spent(name):
    """By hand, of three epochs of a round: images through the networks in synthesis and distillation, and made.

    Images of iterations: 8 a round, two times where ``g_steps`` is 2. Two epochs teach, but all of warm-up 0.
    """
    pooled = {"teacher_forward": 2 * 2 * 8} | both("student", 2 * 2 * 8)
    adversarial = both("teacher", 3 * 2 * 8) | both("generator", 3 * 2 * 8) | both("student", 2 * 2 * 8)
    one_step = both("teacher", 3 * 8) | both("generator", 3 * 8)
    of_three = {"teacher_forward": 3 * 2 * 8} | both("student", 3 * 2 * 8)
    fresh, against = {"generator_forward": 3 * 2 * 8}, both("student", 3 * 8)
    after_warmup = pooled | {"generator_forward": 2 * 2 * 8}
    blocks = (2 + 1 + 1) * 12  # nayer: two loops in warm-up, of 12 images
    views = 2 * 3 * 2 * 8  # cmi; the head also sees both of the 8 and the 10 images remembered in rounds 2 and 3
    cmi = adversarial | both("teacher", views) | both("head", views + 2 * 2 * (8 + 10))
    return {
        **dict.fromkeys(("aeahl_rg", "fast_meta", "fast"), (adversarial, pooled, 3 * 8)),
        "nayer": (
            both("teacher", 2 * blocks) | both("generator", 2 * blocks) | both("student", 2 * 24),
            pooled,
            blocks,
        ),
        "cmi": (cmi, pooled, 3 * 8),
        "deepinversion": (both("teacher", 3 * 2 * 8) | both("student", 2 * 2 * 8), pooled, 3 * 8),  # of the pixels
        "dafl": (one_step, after_warmup, 2 * 2 * 8),
        "dfq": (one_step | both("student", 2 * 8), after_warmup, 2 * 2 * 8),
        "zskt": (one_step | against, of_three | {"teacher_forward": 3 * 8, "generator_forward": 3 * 8}, 3 * 8),
        **dict.fromkeys(("dfad", "mad"), (one_step | against, of_three | fresh, 3 * 2 * 8)),
        "kd": ({}, of_three, 0),
        "noise": ({}, pooled, 3 * 8),
        "scratch": ({}, both("student", 3 * 2 * 8), 0),
    }[name]


def test_every_method_has_a_row_here():
    assert OWN.keys() == set(registry.METHODS)


@pytest.mark.slow
def test_a_run_records_its_terms_and_what_it_spent(whole, name):
    rows, summary = rows_of(whole), json_of(whole / "summary.json")
    warmup = 0 if "warmup 0" in OWN[name] else 1
    assert len(rows) == 3 and all((row["loss_ce" if name in NO_TEACHER else "loss_kd"]) for row in rows[warmup:])
    assert all(float(row["seconds_distillation"]) > 0 for row in rows[warmup:])
    costs = summary["costs"]
    assert sum(counts.pop("images_made", 0) for counts in costs.values()) == summary["images_made"] == spent(name)[2]
    assert (costs.get("synthesis", {}), costs["distillation"]) == spent(name)[:2]
    assert set(costs["evaluation"]) <= {"teacher_forward", "student_forward", "generator_forward"}
    assert costs["evaluation"]["teacher_forward"] > 0  # the look at it


@pytest.mark.slow
@pytest.mark.parametrize("rounds", ["", "--ep_steps 4"])
def test_interrupted_and_resumed_it_ends_bit_identical(name, rounds, whole, tmp_path, at_epoch):  # noqa: F811
    flags = line(name, *rounds.split())
    if rounds:
        finished([*flags, "--run_root", tmp_path / "whole"])
        whole = folder_in(tmp_path / "whole")
    at_epoch(2)
    assert run([*flags, "--run_root", tmp_path / "cut"])[0] == 143
    cut = folder_in(tmp_path / "cut")
    finished(["--resume", cut])
    assert differences(whole, cut) == []


@pytest.mark.slow
@pytest.mark.parametrize("hard", ["--hl", "--hl --no_aea"])
def test_the_hard_loss_works_or_is_refused_in_one_line(name, hard, tmp_path):
    flags = line(name, "--run_root", tmp_path, *hard.split(), *["--p_width", "2"] * (hard == "--hl"))
    if name in NO_TEACHER:
        assert "--hl has no use here" in error_of(line(name, *hard.split()))
    elif name in UNSEEN and hard == "--hl":
        assert "the method shows the attack no images to learn from" in error_of(flags)
    else:
        finished(flags)
        assert rows_of(folder_in(tmp_path))[-1]["loss_hard"]


@pytest.mark.slow
def test_a_teacher_without_batchnorm_works_or_is_refused_in_one_line(name, tmp_path):
    pytest.importorskip("timm")
    teacher = tmp_path / "teacher.pth"
    with torch.random.fork_rng(devices=[]):
        spec = registry.DATASETS["digits"]
        torch.save(registry.classifier(WITHOUT_BN, spec).state_dict(), teacher)
    flags = [*SMALL.split(), "--method", name, "--teacher", WITHOUT_BN, "--teacher_path", teacher, *OWN[name].split()]
    status, _, stderr = run([*flags, "--run_root", tmp_path / "run"])
    assert status == 0 or (status == 2 and "BatchNorm" in stderr and stderr.count("\n") == 1), stderr


@pytest.mark.parametrize("training", [True, False])
def test_a_round_leaves_student_and_teacher_as_they_came(name, training):
    context = context_of()
    student, teacher = context.student.train(training), context.teacher
    student.network.fc.bias.requires_grad_(False)
    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = state_of(student), state_of(teacher)
    subject = small(name, context)
    for _ in range(2):
        subject.synthesize(warmup=False)
    assert same_state(state_of(student), before[0]) and same_state(state_of(teacher), before[1])
    assert all(module.training == training for module in student.modules())
    assert [name for name, p in student.named_parameters() if not p.requires_grad] == ["network.fc.bias"]
    assert all((p.grad == 3).all() for p in student.parameters())
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_no_optimiser_is_fused_on_a_device_where_plain_ones_are_wanted(name, monkeypatch):
    begun, begin = [], torch.optim.Optimizer.__init__
    monkeypatch.setattr(Compute, "fused", False)
    monkeypatch.setattr(
        torch.optim.Optimizer,
        "__init__",
        lambda self, params, defaults: (begun.append(defaults["fused"]), begin(self, params, defaults))[1],
    )
    context = context_of()
    small(name, context).synthesize(warmup=False)
    Attack(context, Attack.Config(p_width=2))
    for kind in ("sgd", "adam"):
        Student(context, Student.Config(optimizer=kind, lr_min=0), 1)
    assert len(begun) >= 3 and not any(begun)


def test_rounds_in_fp16_give_fp32_images_near_those_of_fp32_and_finite_terms(name):
    found = {}
    for compute in (FP32, FP16):
        context = without_overflow(context_of(compute=compute))
        subject = small(name, context)
        for _ in range(2):
            batch = subject.synthesize(warmup=False)
        x = next(iter(subject.batches(1, 4) if batch is None else [batch])).images
        assert x.dtype == torch.float32 and x.isfinite().all()
        assert all(math.isfinite(value) for value in context.read().means().values())
        assert all(value.isfinite().all() for part in subject.networks.values() for value in part.state_dict().values())
        assert context.scaler.get_scale() == (2**8 if compute is FP16 else 1)
        found[compute] = x
    assert (found[FP16] - found[FP32]).abs().mean() < 0.05


def test_every_kind_of_model_is_among_the_first_of_their_kind():
    with torch.device("meta"):
        made = {name: registry.MODELS[name](CLASSES) for name in registry.MODELS}
    norm = torch.nn.BatchNorm2d
    kinds = {name: (type(made[name]), any(isinstance(each, norm) for each in made[name].modules())) for name in made}
    assert {kinds[name] for name in FIRST_OF_KIND} == set(kinds.values())


@pytest.mark.slow
@pytest.mark.parametrize("model", registry.MODELS)
def test_every_model_of_the_registry_teaches_and_the_first_of_their_kind_with_every_method_or_are_refused(model):
    channels = registry.READS[model].channels if model in registry.READS else 3
    network = registry.MODELS[model](CLASSES)
    size = 32 if model.startswith(("vgg", "lenet")) else 16  # those halve maps until none is left, or read 32 alone
    teacher = frozen(Classifier(network, model, CLASSES, size, MEAN[:channels], STD[:channels]), FP32)
    for name in registry.METHODS if model in FIRST_OF_KIND else LOOK_INSIDE:
        context = small_context(teacher)
        few = " --synthesis_batch_size 3" if name not in ("kd", "scratch", "zskt") else ""
        few += " --bank_size 6 --negatives 5 --features stages" if name == "cmi" else ""  # all are a large head
        try:
            subject = small(name, context, few)
        except UserError as error:
            assert name in ("cmi", "dfq") and not teacher.norm_layers and "BatchNorm" in str(error)
            continue
        batch = subject.synthesize(warmup=False)
        x = next(iter(subject.batches(1, 4) if batch is None else [batch])).images
        assert x.shape[1:] == (3, SIZE, SIZE) and x.isfinite().all(), name
        assert all(value.isfinite() for value in map(torch.as_tensor, context.read().means().values())), name


# The yardsticks


def test_a_pass_over_real_images_sees_each_once_with_its_label_and_the_next_in_another_order():
    spec = registry.DATASETS["digits"]
    context = context_of()
    images = spec.load(None, True, False)
    context.training_images = lambda: images
    method = Kd(context, Kd.Config())
    method.augmentation = Augmentation(0, False)
    batches = list(method.batches(4, 32))  # of 64 images
    orders = []
    for part in (batches[:2], batches[2:]):
        x, y = torch.cat([b.images for b in part]), torch.cat([b.columns["labels"] for b in part])
        same = (x.unsqueeze(1) == images.images / 255).flatten(2).all(2)  # (seen, known)
        orders.append(same.float().argmax(1))
        assert same.sum(0).tolist() == same.sum(1).tolist() == [1] * 64
        assert torch.equal(images.labels[orders[-1]], y)
    assert not torch.equal(*orders) and method.synthesize(False) is None
    assert method.sample(5).shape == (5, 3, 32, 32)


def test_warm_up_makes_no_sense_without_synthesis():
    assert "--warmup 2: kd synthesises nothing" in error_of(line("kd", "--warmup", "2"))


def test_from_python_the_real_images_are_given_and_are_missed_where_they_are_not(tmp_path):
    flags = {"num_classes": 3, "img_size": 8, "mean": (0.5,), "std": (0.5,), "epochs": 2, "warmup": 0, "kd_steps": 4}
    images = torch.zeros(12, 1, 8, 8, dtype=torch.uint8)
    labels = torch.arange(12) % 3
    images[labels == 1] = 255
    images[labels == 2, :, :4] = 255
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    given = {"train": (images, labels), "test": (images, labels), "batch_size": 12, "lr": 0.5, "crop_padding": 0}
    found = distil(network, copy.deepcopy(network), method=Scratch, run_root=tmp_path / "a", **flags, **given)
    assert found.results["accuracy_last"] == 100 and found.results["teacher_passes"] == 0
    with user_error("the method needs real training images"):
        distil(network, copy.deepcopy(network), method=Kd, run_root=tmp_path / "b", **flags)
