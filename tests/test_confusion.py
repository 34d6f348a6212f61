"""The confusion matrix says what a loop over the images says."""

import math

import pytest
import torch

from datafree.analysis.confusion import accuracy, class_accuracy, confusion_matrix, mistakes, worst_classes

MATRIX = torch.tensor([[8, 2, 0, 0], [3, 4, 3, 0], [0, 0, 5, 0], [0, 0, 0, 0]])  # nothing of class 3


def test_confusion_matrix_is_that_of_a_loop_a_row_a_true_class():
    predicted, true = torch.randint(7, (500,)), torch.randint(6, (500,))
    counted = [[0] * 7 for _ in range(7)]
    for said, right in zip(predicted.tolist(), true.tolist(), strict=True):
        counted[right][said] += 1
    assert confusion_matrix(predicted, true, 7).tolist() == counted


def test_an_index_out_of_range_or_a_missing_prediction_is_refused():
    for predicted, true in (([0, 3], [0, 1]), ([0, -1], [0, 1]), ([0], [0, 1])):
        with pytest.raises(ValueError):
            confusion_matrix(torch.tensor(predicted), torch.tensor(true), 3)


def test_accuracy_is_of_each_row_and_a_class_without_images_has_none():
    first, second, third, fourth = class_accuracy(MATRIX).tolist()
    assert (first, second, third) == (80.0, 40.0, 100.0) and math.isnan(fourth)
    assert accuracy(MATRIX) == pytest.approx(100 * 17 / 25)


def test_worst_classes_come_first_without_those_of_no_image():
    assert worst_classes(MATRIX) == [1, 0, 2] and worst_classes(MATRIX, 1) == [1]


def test_mistakes_are_off_the_diagonal_most_frequent_first():
    assert mistakes(MATRIX) == [(1, 0, 3), (1, 2, 3), (0, 1, 2)] and mistakes(MATRIX, 1) == [(1, 0, 3)]
    assert mistakes(torch.eye(3).long()) == []
