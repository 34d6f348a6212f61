"""The hard loss in the distillation loop and in whole runs: its labels, its records, what turning parts off means."""

import csv

import pytest
import torch
from conftest import CLASSES, CPU, FP32, ROOT, SIZE, same_state, small_augmentation, small_classifier, small_teacher
from datafree.attack import Attack, AttackSettings, load_perturbation, swap
from datafree.distillation import Distillation, DistillationSettings
from datafree.randomness import Streams

import main
from datafree.data.pool import ImagePool
from datafree.models.perturbation import PerturbationNetwork

TINY = [
    *("--epochs", "3", "--warmup", "1", "--kd_steps", "3", "--batch_size", "8", "--synthesis_batch_size", "8"),
    *("--g_steps", "2", "--ngf", "8", "--p_width", "4", "--attack_bound", "50"),
]
TASK = "digits-resnet20-resnet8"


def varied_teacher():
    """A teacher that gives noise images different classes."""
    teacher = small_teacher()
    normalise = small_augmentation().normalise
    teacher.fc.bias -= teacher(normalise(torch.rand(200, 3, SIZE, SIZE))).mean(0)
    return teacher


def settings(**changes) -> DistillationSettings:
    plain = {"batch_size": 6, "lr": 0.1, "lr_min": 0.0, "momentum": 0.9, "weight_decay": 0.0, "T": 4.0}
    return DistillationSettings(**{**plain, "hl": True, "alpha": 0.9, "beta": 0.1, "total_steps": 4} | changes)


def attack_on(teacher, **changes) -> Attack:
    chosen = AttackSettings(**{"bound": 0.3, "pa": 0.5, "width": 4, "lr_p": 2e-4, "swap": True} | changes)
    network = PerturbationNetwork(4, blocks=1)
    network.layers[-1].weight.data *= 1e5  # perturbations far from 0, as of a trained P
    return Attack(network, teacher, chosen, small_augmentation(), FP32)


def filled_pool(attack: Attack, count: int = 12) -> ImagePool:
    pool = ImagePool(count, SIZE, CPU, twins=True)
    made = attack.twins(torch.rand(count, 3, SIZE, SIZE))
    pool.add(made.images, made.twins, made.labels)
    return pool


def test_twins_are_the_pair_in_pixels_with_swapped_ones_exchanged():
    attack = attack_on(varied_teacher())
    x = torch.rand(40, 3, SIZE, SIZE)
    made = attack.twins(x)
    augmentation = attack.augmentation
    pair, swapped = swap(attack.pair(augmentation.normalise(x)))
    assert 0 < swapped.sum() < len(x)
    for sample in range(len(x)):
        attacked = attack.attack(augmentation.normalise(x[sample : sample + 1]))[0]
        attacked = attacked * augmentation.std[0] + augmentation.mean[0]
        image, twin = (attacked, x[sample]) if swapped[sample] else (x[sample], attacked)
        torch.testing.assert_close(made.images[sample], image, rtol=0, atol=1e-5)
        torch.testing.assert_close(made.twins[sample], twin, rtol=0, atol=1e-5)
    assert torch.equal(made.labels, pair.labels)
    assert made.rates["swap_rate"].item() == pytest.approx(swapped.float().mean().item())


def test_twins_without_swap_keep_every_image_to_the_last_bit():
    attack = attack_on(small_teacher(), swap=False)
    x = torch.rand(10, 3, SIZE, SIZE)
    made = attack.twins(x)
    assert torch.equal(made.images, x) and made.rates["swap_rate"] == 0


def test_a_step_s_objective_is_alpha_kd_plus_beta_cross_entropy():
    teacher, student = small_teacher(), small_classifier(2)
    attack = attack_on(teacher)
    distillation = Distillation(teacher, student, settings(), small_augmentation(), FP32, Streams(0), attack)
    sample = distillation._sample(filled_pool(attack).draw(6, Streams(0)["distillation"]))
    student.train()
    logits = student(sample.x)
    p, q = (sample.teacher_logits / 4).softmax(1), (logits / 4).log_softmax(1)
    kd = 16 * (p * (p.log() - q)).sum(1).mean()
    hard = -torch.stack([logits[i].log_softmax(0)[label] for i, label in enumerate(sample.labels)]).mean()
    expected = torch.autograd.grad(0.9 * kd + 0.1 * hard, list(student.parameters()))
    before = [parameter.detach().clone() for parameter in student.parameters()]
    student.load_state_dict(small_classifier(2).state_dict())
    terms = distillation._step(sample)
    assert terms["loss_kd"].item() == pytest.approx(kd.item(), rel=1e-5)
    assert terms["loss_hard"].item() == pytest.approx(hard.item(), rel=1e-5)
    for parameter, start, gradient in zip(student.parameters(), before, expected, strict=True):
        torch.testing.assert_close(parameter, start - 0.1 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("at", ["pool", "step"])
def test_attacked_samples_keep_the_clean_label_and_get_the_teacher_s_logits_on_what_the_student_sees(at):
    teacher = varied_teacher()
    attack = attack_on(teacher, at=at, pa=1.0, bound=1.0, swap=False)
    pool = filled_pool(attack, 200) if at == "pool" else ImagePool(200, SIZE, CPU)
    if at == "step":
        pool.add(torch.rand(200, 3, SIZE, SIZE))
    plain = small_augmentation(padding=0, flip=False)
    student = small_classifier(2)
    distillation = Distillation(teacher, student, settings(batch_size=50), plain, FP32, Streams(0), attack)
    sample = distillation._sample(pool.draw(50, Streams(0)["distillation"]))
    indices = torch.randint(200, (50,), generator=Streams(0)["distillation"])
    clean = plain.normalise(pool.rows(0, 200)[0][indices].float() / 255)
    assert torch.equal(sample.labels, teacher(clean).argmax(1))
    torch.testing.assert_close(sample.teacher_logits, teacher(sample.x))
    assert not torch.allclose(sample.x, clean) and sample.rates["attacked_rate"] == 1
    assert (sample.labels != sample.teacher_logits.argmax(1)).any()


def test_without_attack_the_label_is_the_teacher_s_own():
    teacher = small_teacher()
    pool = ImagePool(12, SIZE, CPU)
    pool.add(torch.rand(12, 3, SIZE, SIZE))
    distillation = Distillation(teacher, small_classifier(2), settings(), small_augmentation(), FP32, Streams(0))
    terms = distillation._step(distillation._sample(pool.draw(6, Streams(0)["distillation"])))
    assert terms["label_disagreement"] == 0 and terms["loss_hard"] >= 0 and CLASSES > 1


def run(tmp_path, *flags: str) -> dict[str, torch.Tensor]:
    """The student that a run ends with."""
    name = f"t{len(list(tmp_path.iterdir()))}"
    main.main([*TINY, "--run_root", str(tmp_path), "--tag", name, *flags])
    folder = next(tmp_path.glob(f"*-{name}"))
    return torch.load(folder / "student_last.pth", weights_only=True)["state_dict"]


def test_alpha_one_beta_zero_is_no_hard_loss_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert same_state(run(tmp_path), run(tmp_path, "--hl", "--no_aea", "--alpha", "1", "--beta", "0"))


def test_pa_zero_without_swap_is_the_hard_loss_without_attack_and_pa_one_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    without = run(tmp_path, "--hl", "--no_aea")
    assert same_state(without, run(tmp_path, "--hl", "--pa", "0", "--no_swap"))
    assert not same_state(without, run(tmp_path, "--hl", "--pa", "1", "--no_swap"))


def test_a_run_with_the_attack_records_its_rates_and_leaves_p(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    main.main([*TINY, "--run_root", str(tmp_path), "--hard-loss", "--pa", "0.5"])
    folder = tmp_path / f"anew-hl-{TASK}"
    with open(folder / "metrics.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    for column in ("attack_success", "swap_rate", "attacked_rate", "label_disagreement"):
        assert 0 <= float(row[column]) <= 1
    assert float(row["loss_hard"]) > 0 and row["loss_gap"]
    P, bound = load_perturbation(folder / "gap.pth")
    x = torch.randn(2, 3, 32, 32)
    assert bound == pytest.approx(50 / 255) and not P.training
    state = torch.load(folder / "last.pth", weights_only=True)["attack"]["network"]
    assert same_state(state, P.state_dict()) and P(x).shape == x.shape


def test_the_folder_s_name_says_which_hard_loss(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for flags, name in (([], "anew"), (["--hl"], "anew-hl"), (["--hard_loss", "--no_aea"], "anew-hl-noaea")):
        main.main([*flags, "--dry_run", "--run_root", str(tmp_path)])
        assert f"{tmp_path}/{name}-{TASK}\n" in capsys.readouterr().out
