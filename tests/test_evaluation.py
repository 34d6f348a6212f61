"""Accuracy and agreement, counted by hand."""

import pytest
import torch
from conftest import CLASSES, FP32, SIZE, same_state, small_classifier, small_teacher, state_of

from datafree.data.specs import TensorImages
from datafree.engine.evaluation import Evaluation, Score, near_chance, predict

N = 23


def images(seed=0):
    rng = torch.Generator().manual_seed(seed)
    colour = torch.randint(256, (N, 3, 1, 1), generator=rng)
    levels = (colour + torch.randint(-60, 60, (N, 3, SIZE, SIZE), generator=rng)).clamp(0, 255).to(torch.uint8)
    return TensorImages(levels, torch.randint(CLASSES, (N,), generator=rng))


@torch.no_grad()
def answers_by_hand(model, test):
    """The class of each image, one at a time, in eval mode, without any crop or flip."""
    network, training = model.network, model.training
    model.eval()
    logits = [network((level[None] / 255.0 - model.mean) / model.std)[0].tolist() for level in test.images]
    model.train(training)
    return [row.index(max(row)) for row in logits]


def percent(a, b):
    return pytest.approx(100 * sum(x == y for x, y in zip(a, b, strict=True)) / len(a))


@pytest.mark.parametrize("training", [True, False])
def test_predict_gives_eval_mode_answers_in_order_and_leaves_the_model_as_it_came(training):
    model, test = small_classifier(8).train(training), images()
    before = state_of(model)
    for batch_size in (5, 256):
        predicted, true = predict(model, test, FP32, batch_size)
        assert predicted.tolist() == answers_by_hand(model, test) and len(set(predicted.tolist())) > 1
        assert torch.equal(true, test.labels)
    assert model.training == training and same_state(state_of(model), before)


def test_with_a_test_set_accuracy_is_against_the_labels_and_agreement_against_the_teacher_who_is_asked_once():
    teacher, student, test, calls = small_teacher(9), small_classifier(8), images(), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    evaluation = Evaluation(teacher, test, FP32)
    score = [evaluation.score(student) for _ in range(3)][-1]
    assert len(calls) == 1
    says, taught, truth = answers_by_hand(student, test), answers_by_hand(teacher, test), test.labels.tolist()
    assert score.accuracy == percent(says, truth) and score.agreement == percent(says, taught)
    assert evaluation.accuracy_teacher == percent(taught, truth)
    assert len({score.accuracy, score.agreement, evaluation.accuracy_teacher}) == 3
    assert evaluation.score(small_teacher(9)) == Score(evaluation.accuracy_teacher, 100.0)


def test_without_a_test_set_there_is_no_accuracy_and_agreement_is_on_the_fresh_images():
    teacher, student, fresh = small_teacher(9), small_classifier(8), images(5)
    evaluation = Evaluation(teacher, None, FP32)
    score = evaluation.score(student, fresh)
    assert evaluation.accuracy_teacher is None and score.accuracy is None
    assert score.agreement == percent(answers_by_hand(student, fresh), answers_by_hand(teacher, fresh))


def test_a_better_score_is_one_of_higher_accuracy_or_without_accuracies_of_higher_agreement():
    nothing = Score(None, None)
    assert Score(0.0, 0.0).beats(nothing) and Score(None, 0.0).beats(nothing)
    assert Score(50.0, 10.0).beats(Score(40.0, 90.0)) and not Score(40.0, 90.0).beats(Score(50.0, 10.0))
    assert Score(None, 60.0).beats(Score(None, 50.0)) and not Score(None, 50.0).beats(Score(None, 60.0))
    assert not Score(50.0, 90.0).beats(Score(50.0, 10.0))  # the first of equals stays


@torch.no_grad()
def test_the_teacher_is_described_first_with_accuracy_and_mean_confidence_and_warned_of_at_chance():
    teacher, test = small_teacher(9), images()
    says = answers_by_hand(teacher, test)
    shares = [torch.softmax(teacher(level[None] / 255.0)[0].double(), 0).max().item() for level in test.images]
    good = TensorImages(test.images, torch.tensor(says))
    (line,) = Evaluation(teacher, good, FP32).about_teacher()
    assert line == f"teacher: 100.00 % of {N} test images, mean confidence {100 * sum(shares) / N:.1f} %"
    shifted = TensorImages(test.images, (torch.tensor(says) + 1) % CLASSES)  # another order of the classes
    found = Evaluation(teacher, shifted, FP32)
    _, warning = found.about_teacher()
    assert found.accuracy_teacher == 0 and warning.startswith("warning: the teacher is right on 0.00 %")
    assert all(word in warning for word in ("chance is 20 %", "--teacher_mean", "order", "--teacher_img_size"))
    (line,) = Evaluation(teacher, None, FP32).about_teacher()
    assert line.endswith("on noise (there are no test images)")
    teacher.register_forward_hook(lambda module, x, logits: logits.index_fill(0, torch.tensor([0, 4]), torch.nan))
    found = Evaluation(teacher, good, FP32)
    assert found.accuracy_teacher == pytest.approx(100 * (N - 2) / N) and found.confidence_teacher > 0
    assert "answers 2 of them with NaN" in found.about_teacher()[1] and found.score(teacher).agreement < 100


@pytest.mark.parametrize(
    ("percent", "classes", "near"), [(14, 10, True), (15, 10, False), (54, 2, True), (56, 2, False)]
)
def test_near_chance_is_half_as_much_again_or_a_tenth_of_the_rest(percent, classes, near):
    assert near_chance(percent, classes) == near
