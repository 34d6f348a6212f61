"""Calibration by hand, rates with their intervals, an argument that follows its numbers, Carlini-Wagner on pixels."""

import pytest
import torch
from conftest import small_augmentation, small_teacher

from datafree.analysis.adversarial import carlini_wagner
from datafree.analysis.calibration import (
    Disagreement,
    Judged,
    argument_for_the_hard_loss,
    confidence_table,
    expected_calibration_error,
    judge,
    reliability_bins,
)


def judged(confidences, right):
    n = len(confidences)
    labels = torch.zeros(n, dtype=torch.int64)
    predicted = torch.tensor([0 if good else 1 for good in right])
    return Judged(torch.zeros(n, 3, 2, 2), labels, predicted, torch.tensor(confidences))


def test_bins_are_those_counted_by_hand():
    confidences, right = torch.tensor([0.55, 0.65, 0.95, 0.58, 1.0]), torch.tensor([True, False, True, False, True])
    half, most, full = reliability_bins(confidences, right, bins=10)
    assert [(b.low, b.high, b.count) for b in (half, most, full)] == [(0.5, 0.6, 2), (0.6, 0.7, 1), (0.9, 1.0, 2)]
    assert half.confidence == pytest.approx(0.565) and half.accuracy == 0.5
    assert most.accuracy == 0 and full.accuracy == 1 and full.confidence == pytest.approx(0.975)
    (upper,) = reliability_bins(torch.tensor([0.5]), torch.tensor([True]), bins=4)
    assert (upper.low, upper.high) == (0.25, 0.5)  # a bin has its upper end
    expected = (2 * 0.065 + 1 * 0.65 + 2 * 0.025) / 5
    assert expected_calibration_error(confidences, right, bins=10) == pytest.approx(expected, abs=1e-6)


def test_a_calibrated_classifier_has_no_error_and_a_sure_wrong_one_all():
    confidences = torch.full((10,), 0.8)
    assert expected_calibration_error(confidences, torch.arange(10) < 8) == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(torch.ones(7), torch.zeros(7).bool()) == 1
    assert expected_calibration_error(torch.zeros(0), torch.zeros(0).bool()) == 0


def test_judge_gives_the_softmax_of_the_normalised_image_whatever_the_batch():
    teacher, augmentation, x = small_teacher(), small_augmentation(), torch.rand(7, 3, 8, 8)
    whole, parts = judge(teacher, augmentation, x, batch_size=7), judge(teacher, augmentation, x, batch_size=2)
    softmax = teacher((x - augmentation.mean) / augmentation.std).softmax(1)
    assert torch.equal(whole.predicted, softmax.argmax(1)) and torch.equal(whole.predicted, parts.predicted)
    torch.testing.assert_close(whole.confidence, softmax.amax(1))
    torch.testing.assert_close(parts.confidence, whole.confidence)
    assert whole.agrees.all()
    truth = (whole.predicted + torch.tensor([0, 1, 0, 0, 1, 0, 0])) % 5
    told = judge(teacher, augmentation, x, truth)
    assert Disagreement.in_(told) == Disagreement(2, 7) and len(told.where(~told.agrees)) == 2


def test_wilson_interval_is_the_textbook_s():
    low, high = Disagreement(2, 360).interval
    assert (low, high) == (pytest.approx(0.001525, abs=2e-5), pytest.approx(0.02002, abs=2e-5))
    assert Disagreement(0, 50).interval[0] == 0 and Disagreement(0, 50).interval[1] == pytest.approx(0.0713, abs=1e-4)
    assert Disagreement(50, 50).interval[1] == 1 and Disagreement(0, 0).interval == (0.0, 1.0)


def verdicts(*rates, pa=0.001):
    lines = argument_for_the_hard_loss(*(Disagreement(*rate) for rate in rates), pa).splitlines()
    return [line.endswith("**Yes.**") for line in lines], lines


def test_the_argument_says_yes_only_where_the_numbers_do():
    assert verdicts((2, 360), (0, 500), (250, 500))[0] == [True, True, True]
    assert verdicts((0, 360), (0, 500), (0, 500))[0] == [False, True, False]
    assert verdicts((2, 360), (3, 500), (0, 500))[0] == [True, False, False]


def test_the_argument_compares_what_the_student_is_shown_with_the_real_rate():
    real, clean, attacked = (20, 1000), (0, 500), (250, 500)
    assert "shown 0.050 %, below the real" in verdicts(real, clean, attacked)[1][2]
    assert "shown 2.000 %, within the real" in verdicts(real, clean, attacked, pa=0.04)[1][2]
    assert "shown 50.000 %, above the real" in verdicts(real, clean, attacked, pa=1.0)[1][2]
    assert "would take pa = 0.0400" in verdicts(real, clean, attacked)[1][2]
    assert "nothing is brought back" in verdicts(real, clean, (0, 500))[1][2]


def test_the_table_has_a_row_for_every_kind_also_for_none():
    kinds = {"sure": judged([1.0, 1.0], [True, True]), "half": judged([0.5, 0.7], [True, False]), "no": judged([], [])}
    sure, half, no = confidence_table(kinds).splitlines()[2:]
    assert sure == "| sure | 2 | 100.0 | 1.000 | 1.000 | 0.000 |" and no == "| no | 0 | - | - | - | - |"
    assert half.startswith("| half | 2 | 50.0 | 0.600 | 0.600 |")


def test_carlini_wagner_changes_the_class_by_a_small_step_within_the_pixels():
    teacher, augmentation = small_teacher(), small_augmentation()
    x = torch.rand(6, 3, 8, 8)
    before = judge(teacher, augmentation, x)
    changed = carlini_wagner(teacher, augmentation, x, num_classes=5, steps=10, searches=3)
    after = judge(teacher, augmentation, changed, before.labels)
    assert changed.shape == x.shape and changed.min() >= 0 and changed.max() <= 1
    moved = (changed - x).flatten(1).norm(dim=1)
    far = (torch.rand(6, 3, 8, 8) - x).flatten(1).norm(dim=1)
    assert (~after.agrees).sum() >= 2 and (moved < 0.5 * far).all()
    assert (moved[after.agrees] == 0).all() and (moved[~after.agrees] > 0).all()
