"""Calibration by hand, rates with their intervals, an argument that follows its numbers."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_teacher

from datafree.analysis.calibration import (
    argument_for_the_hard_loss,
    confidence_table,
    expected_calibration_error,
    judge,
    reliability,
    wilson_interval,
)


def judged(confidences, right, **columns):
    return pd.DataFrame({"confidence": np.float32(confidences), "right": np.array(right, dtype=bool), **columns})


def test_bins_are_those_counted_by_hand_and_have_their_upper_end():
    frame = judged([0.55, 0.65, 0.95, 0.58, 1.0], [1, 0, 1, 0, 1])
    bins = reliability(frame, bins=10)
    assert [round(bin.right, 2) for bin in bins.index] == [0.6, 0.7, 1.0]
    np.testing.assert_allclose(bins, [[0.565, 0.5, 2], [0.65, 0, 1], [0.975, 1, 2]], atol=1e-6)
    (upper,) = reliability(judged([0.5], [1]), bins=4).index
    assert upper.right == 0.5
    by_hand = (2 * 0.065 + 1 * 0.65 + 2 * 0.025) / 5
    assert expected_calibration_error(frame, bins=10) == pytest.approx(by_hand, abs=1e-6)


def test_a_calibrated_classifier_has_no_error_and_a_sure_wrong_one_all():
    assert expected_calibration_error(judged([0.8] * 10, [1] * 8 + [0] * 2)) == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(judged([1.0] * 7, [0] * 7)) == 1
    assert expected_calibration_error(judged([], [])) == 0


def test_judge_gives_the_softmax_whatever_the_batch_and_its_own_answers_for_labels():
    teacher, x = small_teacher(), torch.rand(7, 3, 8, 8)
    whole, parts, softmax = judge(teacher, x, batch_size=7), judge(teacher, x, batch_size=2), teacher(x).softmax(1)
    assert whole.predicted.tolist() == parts.predicted.tolist() == softmax.argmax(1).tolist()
    np.testing.assert_allclose(whole.confidence, softmax.amax(1), rtol=1e-5)
    np.testing.assert_allclose(parts.confidence, whole.confidence, rtol=1e-5)
    truth = (softmax.argmax(1) + torch.tensor([0, 1, 0, 0, 1, 0, 0])) % 5
    told = judge(teacher, x, truth)
    assert whole.right.all() and told.right.tolist() == [True, False, True, True, False, True, True]
    assert told.label.tolist() == truth.tolist()


def test_wilson_interval_is_the_textbook_s():
    assert wilson_interval(2, 360) == (pytest.approx(0.001525, abs=2e-5), pytest.approx(0.02002, abs=2e-5))
    assert wilson_interval(0, 50) == (0, pytest.approx(0.0713, abs=1e-4)) and wilson_interval(0, 0) == (0, 1)


def lines(*rates, pa=0.001):
    return argument_for_the_hard_loss(*(pd.Series([False] * n + [True] * (of - n)) for n, of in rates), pa).splitlines()


def test_the_argument_says_yes_only_where_the_numbers_do():
    def verdicts(*rates):
        return [line.endswith("**Yes.**") for line in lines(*rates)]

    assert verdicts((2, 360), (0, 500), (250, 500)) == [True, True, True]
    assert verdicts((0, 360), (0, 500), (0, 500)) == [False, True, False]
    assert verdicts((2, 360), (3, 500), (0, 500)) == [True, False, False]


def test_the_argument_compares_what_the_student_is_shown_with_the_real_rate():
    rates = (20, 1000), (0, 500), (250, 500)
    assert "shown 0.050 %, below the real" in lines(*rates)[2] and "would take pa = 0.0400" in lines(*rates)[2]
    assert "shown 2.000 %, within the real" in lines(*rates, pa=0.04)[2]
    assert "shown 50.000 %, above the real" in lines(*rates, pa=1.0)[2]
    assert "nothing is brought back" in lines(*rates[:2], (0, 500))[2]
    assert "2.00 % (20 of 1000; 95 % interval 1.30 to 3.07)" in lines(*rates)[0]


def test_the_table_has_a_row_for_every_name():
    frame = pd.concat([judged([1.0, 1.0], [1, 1], name="sure"), judged([0.5, 0.7], [1, 0], name="half")])
    sure, half = confidence_table(frame).splitlines()[2:]
    assert sure == "| sure | 2 | 100.0 | 1.000 | 1.000 | 0.000 |" and half.startswith(
        "| half | 2 | 50.0 | 0.600 | 0.600 |"
    )
