"""How many operations a round starts: on a GPU, small networks take as long as it takes to start them one by one."""

import floors
import torch
from conftest import FP32, small_context

import registry
from datafree.engine.frozen import frozen
from datafree.methods.aeahl_rg import AeahlRg

OPERATIONS, FOR_L_BN = (
    1744,
    461,
)  # of a round with K = 1 of wrn40_2 > wrn16_1, backward passes and the meta step included
SLACK = 1.03 if torch.__version__ >= "2.9" else 1.08  # 2.6 starts 6 % more


def operations(with_L_bn):
    spec = registry.DATASETS["cifar10"]
    teacher, student = (registry.classifier(name, spec) for name in ("wrn40_2", "wrn16_1"))
    context = small_context(frozen(teacher, FP32), student)
    method = AeahlRg(context, AeahlRg.Config(synthesis_batch_size=2, g_steps=1, nz=8, ngf=2))
    if not with_L_bn:
        method.priors.remove()
    method.synthesize(warmup=False)  # what is done once, and the average of BN statistics
    count = floors.operations(lambda: method.synthesize(warmup=False))
    assert (method.context.read().series["loss_bn"][-1] > 0) == with_L_bn
    return count


def test_a_round_of_one_iteration_starts_no_more_operations_than_it_did():
    with_L_bn, without = operations(True), operations(False)
    assert with_L_bn <= OPERATIONS * SLACK and with_L_bn - without <= FOR_L_BN * SLACK
    assert with_L_bn >= OPERATIONS / SLACK, "fewer: lower the numbers above"
