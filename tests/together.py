"""What two processes find, and what one finds on the same batch: a program that test_processes.py starts.

It takes a folder, and writes RANK.json there: name of a check -> its number.
"""

import copy
import json
from pathlib import Path
from unittest.mock import patch

import torch
from conftest import (
    BF16,
    CLASSES,
    FP16,
    FP32,
    MEAN,
    NGF,
    NZ,
    SIZE,
    STD,
    small_classifier,
    small_context,
    small_network,
    without_overflow,
)
from torch import nn

from datafree import processes
from datafree.cli.flags import distillation_configs
from datafree.configuration import resolve
from datafree.data.batch import Batch
from datafree.data.specs import TensorImages
from datafree.engine.costs import Costs
from datafree.engine.evaluation import Evaluation
from datafree.engine.randomness import Streams
from datafree.engine.readings import Readings
from datafree.engine.student import Student
from datafree.engine.training import Training
from datafree.engine.whole_batch import see_whole_batch, shares_gradients
from datafree.job import prepare
from datafree.losses.adversarial import balance_loss
from datafree.losses.batchnorm import channel_moments
from datafree.methods.aeahl_rg import AeahlRg
from datafree.models.classifier import Classifier
from datafree.targets import chosen
from datafree.targets.soft import Soft
from registry import DATASETS, METHODS, MODELS

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
    see_whole_batch(layer)
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
    """Gradients of one generator iteration, of theta' and of z; then a whole round: its images, and theta after it."""
    how = {"synthesis_batch_size": 2 * B, "nz": NZ, "ngf": NGF, "g_steps": STEPS, "adv": 1.3}
    config = AeahlRg.Config(**how)
    z = both(lambda rng: torch.randn(B, NZ, generator=rng))
    y = both(lambda rng: torch.randint(CLASSES, (B,), generator=rng))

    def context():
        how = {"compute": compute, "padding": 0, "flip": False}
        return without_overflow(small_context(student=small_classifier(2), **how))

    def gradients(method, z, y):
        z = z.clone().requires_grad_()
        theta = method.trained(method.adapted)
        loss = method.objective(method.context.ask(method.adapted, z), y, True)
        loss = method.context.backward(loss, [*theta, z])
        return loss, [p.grad for p in theta], z.grad

    def a_round(config, z, y):
        method, draw = AeahlRg(context(), config), torch.randint

        def given(*args, **how):  # the classes; the crops, which draw too, are of no pixels here
            return y.clone() if args[0] == CLASSES else draw(*args, **how)

        with patch.object(method, "noise", lambda rng: z.clone()), patch.object(torch, "randint", given):
            images = method.synthesize(warmup=False).images
        with torch.no_grad():
            return images, method.generator(z)

    ours = gradients(AeahlRg(context(), config.share()), mine(z), mine(y))
    theirs = alone(lambda: gradients(AeahlRg(context(), config), z, y))
    made, whole = a_round(config.share(), mine(z), mine(y)), alone(a_round, config, z, y)
    return {
        "loss": distance([ours[0]], [theirs[0]]),
        "theta": distance(ours[1], theirs[1]),
        "z": distance([ours[2]], [mine(theirs[2])]),
        "images": distance([made[0]], [mine(whole[0])]),
        "after": distance([made[1]], [mine(whole[1])]),
    }


def overflow():
    """Scale and largest gradient after one in the noise of the second process alone, and then without one."""
    context, found = small_context(compute=FP16), {}
    w, z = nn.Parameter(torch.ones(2)), torch.ones(2).requires_grad_()
    for name, factor in (("bad", float("inf") if processes.rank() else 1.0), ("good", 1.0)):
        context.backward(w.sum() + factor * z.sum(), [w, z])
        largest = max(leaf.grad.abs().max().item() for leaf in (w, z))
        found |= {f"scale, {name}": context.scaler.get_scale(), f"gradient, {name}": largest}
    return found


class Given:
    """Batches that are known."""

    made = staticmethod(Batch.of)

    def __init__(self, images):
        self.images = images

    def drawn(self, count, size):
        return ({"images": x} for x in self.images.split(size))


def distillation():
    """A student after some steps, and whether both processes have the same one."""
    images = both(lambda rng: torch.rand(STEPS * B, 3, SIZE, SIZE, generator=rng))
    own = mine(images)
    whole = torch.cat([torch.cat(pair) for pair in zip(*(half.split(B) for half in images.chunk(2)), strict=True)])

    def learnt(images, config):
        student = small_classifier(2)
        see_whole_batch(student)
        context = small_context(student=student)
        learner = Student(context, config, STEPS)
        targets, gradients = Soft(context, Soft.Config()), []
        for part in images.split(len(images) // STEPS):
            learner.learn(Given(part), targets, 1)
            gradients.append([weight.grad.clone() for weight in student.parameters()])
        return [weight.detach() for weight in student.parameters()], gradients[0]

    config = Student.Config(batch_size=2 * B, lr=0.05)
    (ours, gradient), (theirs, expected) = learnt(own, config.share()), alone(learnt, whole, config)
    flat = torch.cat([value.flatten() for value in ours])
    other = processes.agreed(flat)
    apart = (flat - other).abs().max().item()
    return {"student": distance(ours, theirs), "gradient": distance(gradient, expected), "apart": apart}


def training():
    """A teacher after an epoch on real images: the same images a step whoever takes them."""
    images = TensorImages(
        torch.randint(256, (36, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        torch.arange(36) % CLASSES,
    )
    config = Training.Config(batch_size=12, lr=0.05)

    def trained(config):
        classifier = small_classifier(4)
        see_whole_batch(classifier)
        row = Training(classifier, images, config, lambda x, rng: x, FP32, Streams(0)).epoch()
        weights = [value for value in classifier.state_dict().values() if value.is_floating_point()]
        return [torch.tensor([row["loss"], row["accuracy_train"]]), *weights]

    return distance(trained(config.share()), alone(trained, config))


SMALL = {"synthesis_batch_size": 12, "g_steps": 2, "nz": NZ, "ngf": NGF, "loops": 1, "warmup_loops": 1, "g_life": 1}
SMALL |= {"reset_l0": 0.5, "reset_bn": 0.5, "bank_size": 30, "negatives": 7, "noise_width": 9, "adi": 1.0}


def of_method(name, hard=False, shard=False):
    """How far student and networks are apart in two processes after two rounds."""
    pixels = torch.arange(40 * 3 * 32 * 32).view(40, 3, 32, 32) * 7919 % 256
    method, images = METHODS[name], TensorImages(pixels.to(torch.uint8), torch.arange(40) % 10)
    given = {"method": name, "dataset": "digits", "teacher": "resnet8", "student": "resnet8", "hl": hard, "epochs": 3}
    configs = distillation_configs(method, name, chosen(hard, False, method.targets))
    known = {each for config in configs.values() for each in config.__dataclass_fields__}
    given |= {"batch_size": 12, "kd_steps": 2, "ep_steps": 2, "warmup": 0, "p_width": 4, "seed": 3, "at": 1.0 * hard}
    given |= {"shard": shard} | SMALL | ({"clip_g": 1.0, "judge": "train"} if name == "zskt" else {})
    values = resolve(configs, {k: v for k, v in given.items() if k in known}, lambda known: method.defaults)
    method.complete(values)
    networks = [Classifier(MODELS["resnet8"](10), role, 10, 32, MEAN, STD) for role in ("teacher", "student")]
    job = prepare(values, DATASETS["digits"], *networks, method, FP32, training_images=lambda: images)
    for _ in range(2):
        batch = job.method.synthesize(warmup=False)
        if batch is not None:
            job.pool.add(job.targets.prepare(batch))
        job.student.learn(job.source, job.targets, 2)
    parts = [(part, network.state_dict()) for part, network in job.networks.items()]
    ours = {f"{part}.{key}": value.double() for part, state in parts for key, value in state.items()}
    ours = {key: value for key, value in ours.items() if "noisy" not in key}
    theirs = processes.agreed(ours)
    return max((ours[key] - theirs[key]).abs().max().item() for key in ours)


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
    learning = shares_gradients(network, (3, SIZE, SIZE), torch.device("cpu"))
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


def main(argv):
    processes.join()
    torch.manual_seed(0)  # networks are drawn alike
    found = {
        "norm fp32": norm_layer(torch.float32),
        "norm bf16": norm_layer(torch.bfloat16),
        "norm fp16": norm_layer(torch.float16),
        "norm, cumulative": norm_layer(torch.float32, None),
        "moments": moments(),
        "class balance": class_balance(),
        "synthesis fp32": synthesis(FP32),
        "synthesis bf16": synthesis(BF16),
        "synthesis fp16": synthesis(FP16),
        "overflow": overflow(),
        "distillation": distillation(),
        "training": training(),
        "evaluation": evaluation(),
        "unused": unused(),
        "plain": plain_values(),
        "methods": {name: of_method(name) for name in METHODS},
        "hard": {name: of_method(name, hard=True) for name in ("aeahl_rg", "cmi", "dfq")},
    }
    Path(*argv, f"{processes.rank()}.json").write_text(json.dumps(found))
    processes.wait_for_all()
