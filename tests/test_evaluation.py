"""Accuracy and agreement, counted by hand."""

import pytest
import torch
from conftest import CLASSES, FP32, SIZE, same_state, small_augmentation, small_classifier, small_teacher, state_of
from datafree.data.datasets import TensorImages
from datafree.evaluation import Evaluation, Score, percentage_equal, predict

N = 23


def images(seed=0):
    rng = torch.Generator().manual_seed(seed)
    colour = torch.randint(256, (N, 3, 1, 1), generator=rng)
    levels = (colour + torch.randint(-60, 60, (N, 3, SIZE, SIZE), generator=rng)).clamp(0, 255).to(torch.uint8)
    return TensorImages(levels, torch.randint(CLASSES, (N,), generator=rng))


def answers_by_hand(model, test):
    """The class of each image, one at a time, in eval mode, without any crop or flip."""
    mean, std = small_augmentation().mean, small_augmentation().std
    training = model.training
    model.eval()
    classes = []
    for level in test.images:
        logits = model((level.double().div(255).float()[None] - mean) / std)[0].tolist()
        classes.append(logits.index(max(logits)))
    model.train(training)
    return classes


def percent(a, b):
    return 100 * sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_size", [5, 256])
def test_predict_gives_eval_mode_answers_in_order_and_leaves_the_model_as_it_came(training, batch_size):
    model, test = small_classifier(8).train(training), images()
    before = state_of(model)
    predicted, true = predict(model, test, small_augmentation(), FP32, batch_size)
    assert predicted.tolist() == answers_by_hand(model, test) and len(set(predicted.tolist())) > 1
    assert torch.equal(true, test.labels)
    assert model.training == training and same_state(state_of(model), before)
    assert not predicted.requires_grad


def test_percentage_equal_counts_equal_entries():
    assert percentage_equal(torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]), torch.tensor([1, 2, 3, 0, 0, 0, 0, 0])) == 37.5


def test_with_a_test_set_accuracy_is_against_the_labels_and_agreement_against_the_teacher():
    teacher, student, test = small_teacher(9), small_classifier(8), images()
    evaluation = Evaluation(teacher, test, small_augmentation(), FP32, batch_size=10)
    score = evaluation.score(student)
    says, taught, truth = answers_by_hand(student, test), answers_by_hand(teacher, test), test.labels.tolist()
    assert score.accuracy == pytest.approx(percent(says, truth))
    assert score.agreement == pytest.approx(percent(says, taught))
    assert evaluation.accuracy_teacher == pytest.approx(percent(taught, truth))
    assert len({score.accuracy, score.agreement, evaluation.accuracy_teacher}) == 3


def test_a_teacher_agrees_with_itself():
    evaluation = Evaluation(small_teacher(9), images(), small_augmentation(), FP32)
    assert evaluation.score(small_teacher(9)) == Score(evaluation.accuracy_teacher, 100.0)


def test_without_a_test_set_there_is_no_accuracy_and_agreement_is_on_the_fresh_images():
    teacher, student, fresh = small_teacher(9), small_classifier(8), images(5)
    evaluation = Evaluation(teacher, None, small_augmentation(), FP32)
    assert evaluation.accuracy_teacher is None
    score = evaluation.score(student, fresh)
    assert score.accuracy is None
    assert score.agreement == pytest.approx(percent(answers_by_hand(student, fresh), answers_by_hand(teacher, fresh)))


def test_the_teacher_answers_the_test_set_once_however_often_students_are_scored():
    teacher, calls = small_teacher(9), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    evaluation = Evaluation(teacher, images(), small_augmentation(), FP32)
    for _ in range(3):
        evaluation.score(small_classifier(8))
    assert len(calls) == 1


def test_a_better_score_is_one_of_higher_accuracy_or_without_accuracies_of_higher_agreement():
    nothing = Score(None, None)
    assert Score(0.0, 0.0).beats(nothing) and Score(None, 0.0).beats(nothing)
    assert Score(50.0, 10.0).beats(Score(40.0, 90.0)) and not Score(40.0, 90.0).beats(Score(50.0, 10.0))
    assert Score(None, 60.0).beats(Score(None, 50.0)) and not Score(None, 50.0).beats(Score(None, 60.0))
    assert not Score(50.0, 90.0).beats(Score(50.0, 10.0))  # the first of equals stays
