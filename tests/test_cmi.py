"""CMI's rounds against the algorithm in plain autograd and plain Adam; its memory; what a round leaves alone."""

import copy

import pytest
import torch
from conftest import BF16, CLASSES, NGF, NZ, SIZE, same_state, small_context, small_teacher, state_of, user_error
from test_aeahl_rg import bn_inputs, bn_norms, context_of, moments, takes
from test_sync import no_reading  # noqa: F401

from datafree.data.augmentation import random_resized_crop_flip
from datafree.engine.randomness import Streams
from datafree.methods.cmi import Cmi, Memory

B, K, LR, OUT, WIDTH = 6, 3, 1e-2, 5, 12  # 4 + 8 channels of the small teacher


def method(context=None, **changes):
    values = {"synthesis_batch_size": B, "nz": NZ, "ngf": NGF, "g_steps": K, "lr_g": LR, "head_width": OUT}
    values |= {"bank_size": 14, "negatives": 7, "bn": 2.0, "oh": 0.7, "adv": 1.3, "cr": 0.9, "cr_tau": 0.3}
    return Cmi(context or context_of(), Cmi.Config(**values | changes))


def redrawn(generator, rng):
    """A generator to train by hand: every weight drawn again, in the order of its layers."""
    generator = copy.deepcopy(generator).train()
    layers = [generator.l1[0], *(generator.conv_blocks[place] for place in (0, 1, 2, 4, 5, 7))]
    for layer in layers:
        norm = isinstance(layer, torch.nn.BatchNorm2d)
        layer.weight.data = (1.0 if norm else 0.0) + 0.02 * torch.empty_like(layer.weight).normal_(generator=rng)
        if layer.bias is not None:
            layer.bias.data = torch.zeros_like(layer.bias)
    return generator


def projected(head, features):
    """Two linear layers, ReLU between, to unit length: with the weights in ``head``."""
    W1, b1, W2, b2 = head
    out = (features @ W1.T + b1).relu() @ W2.T + b2
    return out / out.square().sum(1, keepdim=True).sqrt()


class ByHand:
    """The algorithm with a list as memory, the oldest at its front where it is full."""

    def __init__(self, subject):
        self.subject, self.context, self.rng = subject, subject.context, Streams(0)["synthesis"]
        self.head = [p.detach().clone().requires_grad_() for p in subject.head.parameters()]
        self.head_adam = torch.optim.Adam(self.head, lr=LR, foreach=False, fused=False)
        self.memory, self.next = [], 0

    def remember(self, rows):
        for row in rows:
            self.memory[self.next : self.next + 1] = [row]
            self.next = (self.next + 1) % 14

    def remembered(self):
        if len(self.memory) <= 7:
            return self.memory
        return [self.memory[i] for i in torch.randperm(len(self.memory), generator=self.rng)[:7]]

    def cr(self, local, whole):
        known = torch.stack(self.remembered()) if self.memory else torch.zeros(0, 2 * WIDTH)
        a = projected(self.head, torch.cat([local, known[:, :WIDTH]]))
        o = projected(self.head, torch.cat([whole, known[:, WIDTH:]])).detach()
        losses = []
        for i in range(len(a)):
            similar = torch.stack([(a[i] * each).sum() / 0.3 for each in o])
            losses.append(similar.exp().sum().log() - similar[i])
        now, before = losses[:B], losses[B:]
        return sum(now) / B + (sum(before) / len(before) if before else 0)

    def round(self, adversarial):
        """(Images of each iteration, terms by name, losses)."""
        context, rng = self.context, self.rng
        generator = redrawn(self.subject.generator, rng)
        z = torch.randn(B, NZ, generator=rng).requires_grad_()
        y = torch.tensor(sorted(torch.randint(CLASSES, (B,), generator=rng).tolist()))
        trained = [*generator.parameters(), z]
        adam = torch.optim.Adam(trained, lr=LR, betas=(0.5, 0.999), foreach=False, fused=False)
        images, features, losses = [], [], []
        terms = {"loss_bn": [], "loss_oh": [], "loss_adv": [], "loss_cr": []}
        for _ in range(K):
            x = generator(z)
            view = context.augmentation(x, rng)
            part = random_resized_crop_flip(x, rng, (0.25, 1.0), context.spec.flip)
            first, second, logits = bn_inputs(context.teacher, view)
            whole = torch.cat([first.mean((2, 3)), second.mean((2, 3))], 1)
            local = torch.cat([each.mean((2, 3)) for each in bn_inputs(context.teacher, part)[:2]], 1)
            answers = context.student.network(takes(context.student, view))
            agree = logits.argmax(1) == answers.argmax(1)
            kl = (logits.softmax(1) * (logits.log_softmax(1) - answers.log_softmax(1))).sum(1)
            L_bn = bn_norms(context.teacher, moments(first, second))
            L_oh = -logits.log_softmax(1)[torch.arange(B), y].mean()
            L_adv = -(agree * kl).mean() if adversarial else torch.zeros(())
            L_cr = self.cr(local, whole)
            loss = 2.0 * L_bn + 0.7 * L_oh + 1.3 * L_adv + 0.9 * L_cr
            for parameter, gradient in zip(
                trained + self.head, torch.autograd.grad(loss, trained + self.head), strict=True
            ):
                parameter.grad = gradient
            adam.step()
            self.head_adam.step()
            images.append(x.detach())
            features.append(torch.cat([local, whole], 1).detach())
            losses.append(loss.item())
            for name, value in zip(terms, (L_bn, L_oh, L_adv, L_cr), strict=True):
                terms[name].append(value.item())
        self.remember(features[losses.index(min(losses))])
        return images, terms, losses


@pytest.mark.parametrize("formats", ["one format", "two formats"])
def test_rounds_are_those_by_hand_while_the_memory_is_empty_fills_and_is_written_over(formats):
    context = context_of(formats)
    context.student.eval()
    subject = method(context)
    by_hand, places = ByHand(subject), []
    for number in range(4):  # 0, 6, 12, 14 rows remembered
        images, terms, losses = by_hand.round(adversarial=number > 0)
        batch, read = subject.synthesize(warmup=number == 0), context.read().series
        places.append(losses.index(min(losses)))
        torch.testing.assert_close(batch.images, images[places[-1]], rtol=1e-3, atol=2e-4)
        assert batch.images.shape == (B, 3, SIZE, SIZE) and not batch.images.requires_grad
        for name, values in (terms | {"loss_generator": losses}).items():
            assert read.pop(name) == pytest.approx(values, rel=2e-3), name
        assert not read and (min(terms["loss_adv"]) < 0) == (number > 0)
        assert subject.memory.size == min(6 * (number + 1), 14)
        remembered = torch.stack(by_hand.memory)
        torch.testing.assert_close(subject.memory.rows[: subject.memory.size], remembered, rtol=2e-3, atol=2e-3)
    assert set(context.streams.state_dict()) == {"synthesis"}


def test_the_best_images_and_their_features_are_kept_not_the_last():
    subject, seen = method(lr_g=1.0, g_steps=6), []
    objective = subject.objective

    def noted(x, y, adversarial):
        loss, features = objective(x, y, adversarial)
        seen.append((loss.item(), x.detach(), features.detach()))
        return loss, features

    subject.objective = noted
    images = subject.synthesize(warmup=False).images
    best = min(range(6), key=lambda k: seen[k][0])
    assert best < 5 and torch.equal(images, seen[best][1])
    assert torch.equal(subject.memory.rows[:B], seen[best][2])


def test_each_round_begins_with_a_generator_of_its_own_and_goes_on_with_the_same_head():
    subject = method(lr_g=1e-9, g_steps=1)  # nothing is learnt
    head, kept = state_of(subject.head), []
    for _ in range(2):
        subject.synthesize(warmup=True)
        kept.append(state_of(subject.generator))
    weights = [state["l1.0.weight"] for state in kept]
    assert not torch.equal(*weights) and all(w.std().item() == pytest.approx(0.02, rel=0.3) for w in weights)
    assert all(state["conv_blocks.0.num_batches_tracked"] == 1 for state in kept)
    for name, value in subject.head.state_dict().items():
        torch.testing.assert_close(value, head[name], rtol=0, atol=1e-6)


# The memory


def filled(*counts, capacity=10):
    """A memory that was given 0, 1, 2, ... in additions of so many rows."""
    memory, start = Memory(capacity, 1, torch.device("cpu")), 0
    for count in counts:
        memory.add(torch.arange(start, start + count).float().view(-1, 1))
        start += count
    return memory


def content(memory, count=100):
    return sorted(memory.drawn(count, torch.Generator().manual_seed(0)).flatten().tolist())


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((), []),
        ((4,), range(4)),
        ((5, 5), range(10)),  # exactly full: all of it counts
        ((10,), range(10)),
        ((5, 5, 5), range(5, 15)),
        ((4, 4, 4), range(2, 12)),  # an addition over the end
        ((4, 4, 4, 4, 4, 4), range(14, 24)),
        ((3, 25), range(18, 28)),  # more than there is room for
    ],
)
def test_the_memory_holds_the_newest_also_where_it_is_exactly_full_and_beyond(counts, expected):
    memory = filled(*counts)
    assert content(memory) == list(expected) and memory.size == len(expected)


@pytest.mark.parametrize("counts", [(4, 4), (5, 5), (4, 4, 4)])
def test_negatives_are_drawn_without_replacement_from_all_of_it(counts):
    memory, rng = filled(*counts), torch.Generator().manual_seed(0)
    drawn = [memory.drawn(5, rng).flatten().tolist() for _ in range(40)]
    assert all(len(set(each)) == 5 for each in drawn) and len({tuple(each) for each in drawn}) > 30
    assert sorted(set().union(*drawn)) == content(memory)


@pytest.mark.parametrize("counts", [(), (4,), (5, 5), (4, 4, 4)])
def test_a_memory_is_restored_with_the_place_of_its_next_row_and_saved_without_its_empty_ones(counts):
    memory, other = filled(*counts), filled(7, 7)
    state = memory.state_dict()
    assert len(state["rows"]) == memory.size and state["rows"].untyped_storage().nbytes() == 4 * memory.size
    other.load_state_dict(state)
    for each in (memory, other):
        each.add(torch.tensor([[70.0], [71.0], [72.0]]))
    assert content(memory) == content(other) and torch.equal(memory.rows[: memory.size], other.rows[: other.size])


# What it leaves alone


@pytest.mark.parametrize(("warmup", "adv"), [(True, 1.3), (False, 0.0)])
def test_in_warm_up_and_with_weight_zero_the_student_plays_no_part(warmup, adv):
    context = context_of()
    context.student.register_forward_pre_hook(lambda *_: pytest.fail("the student was called"))
    images = method(context, adv=adv).synthesize(warmup).images
    assert context.read().means()["loss_adv"] == 0
    assert torch.equal(images, method().synthesize(warmup=True).images)


def test_every_iterations_whole_view_is_shown_to_whoever_learns_from_it():
    context, seen = context_of(), []
    context.observers.append(lambda *shown: seen.append(shown))
    method(context).synthesize(warmup=False)
    assert len(seen) == K and not any(each.requires_grad for shown in seen for each in shown)
    for x, logits in seen:
        torch.testing.assert_close(logits, context.teacher(x), rtol=1e-4, atol=1e-4)


def test_a_teacher_without_batch_norm_is_refused_in_one_line(tmp_path):
    with user_error("method cmi", "teacher small has none", "--method deepinversion"):
        method(small_context(small_teacher(batch_norm=False)))


def test_a_sample_is_of_the_generator_as_it_is_and_changes_nothing():
    subject = method()
    subject.synthesize(warmup=False)
    before = state_of(subject.generator)
    x, z = subject.sample(B + 3), torch.randn(B + 3, NZ, generator=Streams(0)["sample"])
    torch.testing.assert_close(x, copy.deepcopy(subject.generator).eval()(z))
    assert same_state(state_of(subject.generator), before) and subject.generator.training and not x.requires_grad


def test_bf16_rounds_give_fp32_images_and_losses_near_those_of_fp32():
    full, half = (method(context_of(**how), adv=0.0) for how in ({}, {"compute": BF16}))
    for _ in range(2):  # the first has nothing to remember
        assert [each.synthesize(warmup=True).images.dtype for each in (full, half)] == 2 * [torch.float32]
    losses = [each.context.read().series["loss_generator"] for each in (full, half)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.03)
    assert losses[1][K] == pytest.approx(losses[0][K], rel=0.03)


def test_rounds_read_nothing_from_the_device(no_reading):  # noqa: F811
    subject = method()
    with no_reading:
        for _ in range(4):
            subject.synthesize(warmup=False)


# Going on


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_state_dict_and_the_streams_continue_exactly(rounds, tmp_path):
    subject, other = method(), method(context_of(seed=7))
    for made in (*[subject] * rounds, other):  # the other's state is one that loading must replace
        made.synthesize(warmup=False)
    torch.save([subject.state_dict(), subject.context.streams.state_dict()], tmp_path / "state.pth")
    expected = [subject.synthesize(warmup=False).images for _ in range(3)]
    state, streams = torch.load(tmp_path / "state.pth", weights_only=True)
    other.load_state_dict(state)
    other.context.streams.load_state_dict(streams)
    assert all(torch.equal(other.synthesize(warmup=False).images, images) for images in expected)
    assert torch.equal(other.sample(3, "synthesis"), subject.sample(3, "synthesis"))
    assert same_state(state_of(other.head), state_of(subject.head))


@pytest.mark.parametrize(
    ("added", "before", "after"), [(7, 5, 3), (7, 5, 9), (4, 5, 3), (4, 5, 9), (5, 5, 9), (10, 5, 3)]
)
def test_a_memory_of_another_capacity_keeps_the_newest_and_goes_on_behind_them(added, before, after):
    first, second = (Memory(capacity, 1, torch.device("cpu")) for capacity in (before, after))
    for row in range(added):
        first.add(torch.full((1, 1), float(row)))
    second.load_state_dict(first.state_dict())
    kept = [*range(added)][-min(before, after) :]
    assert sorted(second.rows[: second.size].flatten().tolist()) == kept
    second.add(torch.full((1, 1), 99.0))
    assert sorted(second.rows[: second.size].flatten().tolist()) == [*kept, 99][-after:]
