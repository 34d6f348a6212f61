"""What two processes find, and what one finds on the same batch; started with torchrun by test_processes.py.

torchrun --nproc_per_node=2 tests/together.py FOLDER        writes FOLDER/RANK.json: name of a check -> its number
"""

import copy
import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from conftest import BF16, CLASSES, FP32, NGF, NZ, SIZE, small_classifier, small_context, small_network
from torch import nn

from datafree import processes
from datafree.data.batch import Batch
from datafree.data.specs import TensorImages
from datafree.engine.costs import Costs
from datafree.engine.evaluation import Evaluation
from datafree.engine.randomness import Streams
from datafree.engine.readings import Readings
from datafree.engine.student import Student
from datafree.engine.training import Training
from datafree.losses.adversarial import balance_loss
from datafree.losses.batchnorm import channel_moments
from datafree.methods.aeahl_rg import AeahlRg
from datafree.targets.soft import Soft

B, STEPS = 8, 3  # of a process


def alone(work, *args):
    """What a single process makes of it."""
    with patch.multiple(processes, _rank=0, _size=1):
        return work(*args)


def both(make, seed=100):
    """What the two processes make, side by side: each knows both, from their seeds."""
    return torch.cat([make(torch.Generator().manual_seed(seed + rank)) for rank in range(2)])


def mine(whole):
    """This process's half."""
    return whole.chunk(2)[processes.rank()]


def distance(found, expected):
    """Largest difference, relative to the largest value."""
    pairs = list(zip(found, expected, strict=True))
    most = max(expected.abs().max().item() for _, expected in pairs)
    return max((found - expected).abs().max().item() for found, expected in pairs) / most


def norm_layer(dtype, momentum=0.1):
    """A BatchNorm of two halves against PyTorch's of the whole: output, gradients, statistics, relative differences."""
    torch.manual_seed(3)
    reference = nn.BatchNorm2d(6, momentum=momentum)
    nn.init.normal_(reference.weight)
    layer = copy.deepcopy(reference)
    processes.see_whole_batch(layer)
    x = both(lambda rng: 3 + 2 * torch.randn(B, 6, 5, 5, generator=rng)).to(dtype)
    direction = both(lambda rng: torch.randn(B, 6, 5, 5, generator=rng), seed=200).to(dtype)
    whole, half = x.clone().requires_grad_(), mine(x).clone().requires_grad_()
    expected, found = reference(whole), layer(half)
    expected.backward(direction)
    found.backward(mine(direction))
    grads = processes.total(layer.weight.grad), processes.total(layer.bias.grad)
    return {
        "out": distance([found.float()], [mine(expected.float())]),
        "gradient": distance([half.grad.float()], [mine(whole.grad.float())]),
        "weights": distance(grads, [reference.weight.grad, reference.bias.grad]),
        "mean": distance([layer.running_mean], [reference.running_mean]),
        "variance": distance([layer.running_var], [reference.running_var]),
    }


def moments():
    """Of a batch that two processes share, and the gradient of something made of them."""
    x = both(lambda rng: 5 + torch.randn(B, 4, 3, 3, generator=rng))
    direction = torch.randn(8, generator=torch.Generator().manual_seed(0))

    def loss(x, merged):
        return (merged(torch.cat(channel_moments(x))) * direction).square().sum()

    whole, half = x.clone().requires_grad_(), mine(x).clone().requires_grad_()
    expected, found = loss(whole, lambda moments: moments), loss(half, processes.whole_moments)
    expected.backward()
    found.backward()
    return {"value": distance([found], [expected]), "gradient": distance([half.grad / 2], [mine(whole.grad)])}


def class_balance():
    """L_ie is of the whole batch."""
    logits = both(lambda rng: 3 * torch.randn(B, CLASSES, generator=rng))
    return distance([balance_loss(mine(logits))], [alone(balance_loss, logits)])


def synthesis(compute):
    """Gradients of one generator iteration: of theta' and of z; then the images of a whole round."""
    how = {"synthesis_batch_size": 2 * B, "nz": NZ, "ngf": NGF, "g_steps": STEPS, "adv": 1.3}
    config = AeahlRg.Config(**how)
    z = both(lambda rng: torch.randn(B, NZ, generator=rng))
    y = both(lambda rng: torch.randint(CLASSES, (B,), generator=rng))

    def context():
        return small_context(student=small_classifier(2), compute=compute, padding=0, flip=False)

    def gradients(method, z, y):
        z = z.clone().requires_grad_()
        theta = method.trained(method.adapted)
        loss = method.objective(method.context.ask(method.adapted, z), y, True)
        loss = method.context.backward(loss, [*theta, z])
        return loss, [p.grad for p in theta], z.grad

    ours = gradients(AeahlRg(context(), config.share()), mine(z), mine(y))
    theirs = alone(lambda: gradients(AeahlRg(context(), config), z, y))
    return {
        "loss": distance([ours[0]], [theirs[0]]),
        "theta": distance(ours[1], theirs[1]),
        "z": distance([ours[2]], [mine(theirs[2])]),
    }


class Given:
    """Batches that are known."""

    def __init__(self, images):
        self.images = images

    def batches(self, count, size):
        return (Batch(x) for x in self.images.split(size))


def distillation():
    """A student after some steps, and whether both processes have the same one."""
    images = both(lambda rng: torch.rand(STEPS * B, 3, SIZE, SIZE, generator=rng))
    own = mine(images)
    whole = torch.cat([torch.cat(pair) for pair in zip(*(half.split(B) for half in images.chunk(2)), strict=True)])

    def learnt(images, config):
        student = small_classifier(2)
        processes.see_whole_batch(student)
        context = small_context(student=student)
        learner = Student(context, config, STEPS)
        learner.learn(Given(images), Soft(context, Soft.Config()), STEPS)
        return [weight.detach() for weight in student.parameters()]

    config = Student.Config(batch_size=2 * B, lr=0.05)
    ours, theirs = learnt(own, config.share()), alone(learnt, whole, config)
    flat = torch.cat([value.flatten() for value in ours])
    other = processes.agreed(flat)
    return {"student": distance(ours, theirs), "apart": (flat - other).abs().max().item()}


def training():
    """A teacher after an epoch on real images: the same images a step whoever takes them."""
    images = TensorImages(
        torch.randint(256, (36, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        torch.arange(36) % CLASSES,
    )
    config = Training.Config(batch_size=12, lr=0.05)

    def trained(config, stream):
        classifier = small_classifier(4)
        processes.see_whole_batch(classifier)
        streams = Streams(0)
        work = Training(classifier, images, config, lambda x, rng: x, FP32, streams)
        streams._generators["training"] = streams.common(stream)  # the order that several processes have
        row = work.epoch()
        weights = [value for value in classifier.state_dict().values() if value.is_floating_point()]
        return [torch.tensor([row["loss"], row["accuracy_train"]]), *weights]

    return distance(trained(config.share(), "order"), alone(trained, config, "order"))


def evaluation():
    """Accuracy and agreement on 37 images, an odd number."""
    images = TensorImages(
        torch.randint(256, (37, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        torch.arange(37) % CLASSES,
    )
    teacher, student = small_classifier(1).eval(), small_classifier(2)

    def judged():
        evaluation = Evaluation(teacher, images, FP32)
        score = evaluation.score(student)
        return [torch.tensor([score.accuracy, score.agreement, evaluation.accuracy_teacher])]

    return distance(judged(), alone(judged))


def unused():
    """A network with a weight that no answer depends on learns, too."""

    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = small_network(0), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    network = Spare().train()
    learning = processes.sharing_gradients(network, torch.rand(2, 3, SIZE, SIZE))
    for _ in range(3):
        learning(torch.rand(4, 3, SIZE, SIZE)).sum().backward()
    return float(network.spare.weight.grad is None)


def plain_values():
    """What is agreed, the largest, costs, readings, streams."""
    rank, costs, readings, streams = processes.rank(), Costs(), Readings(), Streams(0)
    costs.count("teacher", nn.Identity(), torch.zeros(3))
    readings.add({"loss": torch.tensor(float(rank))})
    draws = torch.stack([torch.rand(4, generator=streams[name]) for name in ("a", "b")])
    common = torch.rand(4, generator=streams.common("reset"))
    return {
        "agreed": float(processes.agreed({"rank": rank}) == {"rank": 0}),
        "largest": float(processes.largest(rank, 5 - rank) == (1, 5)),
        "costs": costs.take()["teacher_forward"],
        "loss": readings.means()["loss"],
        "own": (draws - processes.agreed(draws)).abs().min().item(),
        "common": (common - processes.agreed(common)).abs().max().item(),
    }


def main(folder):
    processes.join()
    found = {
        "norm fp32": norm_layer(torch.float32),
        "norm bf16": norm_layer(torch.bfloat16),
        "norm, cumulative": norm_layer(torch.float32, None),
        "moments": moments(),
        "class balance": class_balance(),
        "synthesis fp32": synthesis(FP32),
        "synthesis bf16": synthesis(BF16),
        "distillation": distillation(),
        "training": training(),
        "evaluation": evaluation(),
        "unused": unused(),
        "plain": plain_values(),
    }
    Path(folder, f"{processes.rank()}.json").write_text(json.dumps(found))
    processes.wait_for_all()
    processes.leave()


if __name__ == "__main__":
    main(sys.argv[1])
