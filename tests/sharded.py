"""A student shared out over two processes, and what one finds on the same batch: a program of test_sharding.py.

It takes a folder, and writes RANK.json there: name of a check -> what was found.
"""

import json
import sys
from pathlib import Path

import torch
from conftest import CLASSES, FP32, SIZE, small_classifier, small_context, small_network
from together import STEPS, B, Given, alone, both, distance, mine, of_method
from torch import nn

from datafree import processes
from datafree.data.specs import TensorImages
from datafree.engine.evaluation import Evaluation
from datafree.engine.sharding import blocks, gathered, is_shared_out, whole
from datafree.engine.student import Student
from datafree.engine.whole_batch import see_whole_batch
from datafree.errors import UserError
from datafree.targets.soft import Soft

KNOBS = {
    "sgd": {"lr": 0.05},
    "nesterov, clipped": {"lr": 0.05, "nesterov": True, "clip_grad": 0.1},
    "adamw": {"lr": 1e-3, "optimizer": "adamw"},
}
METHODS_THAT_ASK = ("zskt", "cmi", "mad")  # the student, each in its own way


class Block(nn.Module):
    """Of three channels, which two processes do not share evenly."""

    def __init__(self):
        super().__init__()
        self.narrow, self.norm, self.wide = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return x + self.wide(self.norm(self.narrow(x)).relu())


def in_blocks(seed):
    """A classifier with a sequence of blocks."""
    classifier = small_classifier(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier.network.bn1 = nn.Sequential(classifier.network.bn1, Block(), Block())
    return classifier


def learner(config, shard):
    """A student as it begins."""
    classifier = in_blocks(2)
    see_whole_batch(classifier)
    return Student(small_context(student=classifier), config, 2 * STEPS, shard=shard)


def learn(student, images, steps=STEPS):
    """So many steps on known images; the student."""
    student.learn(Given(images), Soft(student.context, Soft.Config()), steps)
    return student


def values(state):
    """Floating-point tensors of a state dict."""
    return [value for value in state.values() if value.is_floating_point()]


def step_by_step(knobs):
    """Gradients of a first step, and the student after some, against one process and against DDP; apart: processes."""
    images = both(lambda rng: torch.rand(STEPS * B, 3, SIZE, SIZE, generator=rng))
    own = mine(images)
    together = torch.cat([torch.cat(pair) for pair in zip(*(half.split(B) for half in images.chunk(2)), strict=True)])
    config = Student.Config(batch_size=2 * B, lr_min=0.0, **knobs)
    ours, ddp = (learner(config.share(), shard) for shard in (True, False))
    theirs = alone(learner, config, False)
    learn(ours, own[:B], 1), alone(learn, theirs, together[: 2 * B], 1)
    gradients = [whole(weight.grad) for weight in ours.classifier.parameters()]
    found = {"gradients": distance(gradients, [weight.grad for weight in theirs.classifier.parameters()])}
    learn(ours, own[B:], STEPS - 1), alone(learn, theirs, together[2 * B :], STEPS - 1), learn(ddp, own)
    after = values(ours.classifier.state_dict())
    flat = torch.cat([value.flatten() for value in after])
    return found | {
        "one process": distance(after, values(theirs.classifier.state_dict())),
        "DDP": distance(after, values(ddp.classifier.state_dict())),
        "apart": (flat - processes.agreed(flat)).abs().max().item(),
        "whole": not any(map(is_shared_out, ours.state_dict()["student"].values())),
    }


def shares():
    """What a process has of the weights, and whether a state has the plain layout."""
    student, plain = learner(Student.Config(batch_size=B), True), in_blocks(2)
    mine = sum(weight.to_local().numel() for weight in student.classifier.parameters())
    state, expected = student.classifier.state_dict(), plain.state_dict()
    same = list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in state)
    return {"share": mine / sum(weight.numel() for weight in plain.parameters()), "same": same}


def restored(knobs):
    """How far a student that went on from a file's state is from the one that was left alone."""
    images = mine(both(lambda rng: torch.rand(2 * STEPS * B, 3, SIZE, SIZE, generator=rng)))
    first, then = images.chunk(2)
    config = Student.Config(batch_size=B, lr_min=0.0, **knobs)
    left_alone, other = learn(learner(config, True), first), learner(config, True)
    state = left_alone.state_dict()
    file = Path(sys.argv[1], f"state {processes.rank()}.pth")
    torch.save(state, file)
    learn(other, then)  # something else by then
    other.load_state_dict(torch.load(file, weights_only=True))
    for student in (left_alone, other):
        learn(student, then)
    ours, theirs = (values(student.classifier.state_dict()) for student in (left_alone, other))
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def judge():
    """The gradient that images get from a student that is asked and not trained, against that of a whole one."""
    student, plain = learner(Student.Config(batch_size=B), True), in_blocks(2).eval()
    x, y = (torch.rand(B, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)).requires_grad_() for _ in range(2))
    with student.context.student_as_judge() as asked:
        loss = asked(x).square().sum()
    student.context.backward(loss, [x])
    plain(y).square().sum().backward()
    trained = any(weight.grad is not None for weight in student.classifier.parameters())
    return {"gradient": distance([x.grad * processes.size()], [y.grad]), "trained": trained}


def evaluation():
    """Accuracy where the second process has fewer batches; and that weights are shared out again afterwards."""
    images = TensorImages(
        torch.randint(256, (9, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        torch.arange(9) % CLASSES,
    )
    student, plain = learner(Student.Config(batch_size=B), True), in_blocks(2)
    teacher = small_classifier(1).eval()
    with gathered(student.classifier):
        found = Evaluation(teacher, images, FP32, batch_size=4).score(student.classifier)
    expected = alone(lambda: Evaluation(teacher, images, FP32).score(plain))
    return found == expected and all(map(is_shared_out, student.classifier.parameters()))


def refused():
    """What is said of a network that cannot be shared out."""
    scripted = torch.jit.script(small_network(0))
    classifier = small_classifier(0)
    classifier.network = scripted
    try:
        Student(small_context(student=classifier), Student.Config(), 1, shard=True)
    except UserError as error:
        return str(error)
    return ""


def main(argv):
    processes.join()
    torch.manual_seed(0)
    found = {
        "steps": {name: step_by_step(knobs) for name, knobs in KNOBS.items()},
        "shares": shares(),
        "restored": {name: restored(knobs) for name, knobs in KNOBS.items()},
        "judge": judge(),
        "evaluation": evaluation(),
        "methods": {name: of_method(name, shard=True) for name in METHODS_THAT_ASK},
        "blocks": [type(block).__name__ for block in blocks(in_blocks(0))],
        "refused": refused(),
    }
    Path(*argv, f"{processes.rank()}.json").write_text(json.dumps(found))
    processes.wait_for_all()
