"""Images as parameters: Adam on the pixels themselves until the teacher takes them for what it was trained on.

x ~ N(0.5, 0.1), y ~ U{0..C-1};  for steps: x <- Adam(bn * L_bn + CE(T(x), y) + tv * TV(x));  x goes to the pool
"""

from dataclasses import dataclass

import torch

from datafree import configuration
from datafree.configuration import knob
from datafree.data.batch import Batch
from datafree.losses.kd import one_hot_loss
from datafree.methods.base import Method
from datafree.methods.inversion import Best
from datafree.models.norm_statistics import NormStatistics


class Pixels(Method):
    @dataclass(frozen=True)
    class Config(configuration.Config):
        synthesis_batch_size: int = knob(64, "images made a round", low=1, unit="IMAGES")
        steps: int = knob(30, "of Adam on the pixels, a round", low=1)
        lr_x: float = knob(0.05, "learning rate of the pixels", above=0)
        bn: float = knob(1.0, "weight of L_bn", low=0)
        tv: float = knob(0.1, "weight of the total variation: raise it for smoother images", low=0)

    def __init__(self, context, config):
        super().__init__(context, config)
        self.statistics = NormStatistics(context.teacher, momentum=0.0)

    def synthesize(self, warmup):
        return Batch(self.sample(self.config.synthesis_batch_size))

    def sample(self, count, stream="pixels"):
        context, config, rng, best = self.context, self.config, self.context.streams[stream], Best()
        device = context.compute.device
        x = (0.5 + 0.1 * torch.randn(count, *context.spec.shape, generator=rng, device=device)).requires_grad_()
        y = torch.randint(context.spec.num_classes, (count,), generator=rng, device=device)
        adam = torch.optim.Adam([x], lr=config.lr_x)
        for _ in range(config.steps):
            with torch.enable_grad(), self.statistics.listening():
                logits = context.ask(context.teacher, x)
                L_bn, L_oh = self.statistics.loss(), one_hot_loss(logits, y)
                L_tv = x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()
                loss = config.bn * L_bn + L_oh + config.tv * L_tv
                context.backward(loss, [x])
            context.report({"loss_bn": L_bn, "loss_oh": L_oh, "loss_tv": L_tv})  # any names
            context.observe(x, logits)  # for --hl, whose attack learns from every iteration's images
            best.keep(x.clamp(0, 1), loss)
            adam.step()
        return best.images
