"""Names to models, data sets and published hyper-parameters.

A model is one decorated function that takes the number of classes; its name is the function's.
A data set is one ``DATASETS.add`` entry.
"""

import torchvision
from torch import nn

from datafree.models.cifar_resnet import CifarResNet
from datafree.models.resnet import BasicBlock, Bottleneck, ResNet
from datafree.models.shufflenetv2 import ShuffleNetV2
from datafree.models.vgg import VGG
from datafree.models.wide_resnet import WideResNet
from datafree.registration import Registry

MODELS = Registry("model")


@MODELS.register
def wrn16_1(num_classes: int) -> nn.Module:
    return WideResNet(16, 1, num_classes)


@MODELS.register
def wrn16_2(num_classes: int) -> nn.Module:
    return WideResNet(16, 2, num_classes)


@MODELS.register
def wrn40_1(num_classes: int) -> nn.Module:
    return WideResNet(40, 1, num_classes)


@MODELS.register
def wrn40_2(num_classes: int) -> nn.Module:
    return WideResNet(40, 2, num_classes)


@MODELS.register
def resnet8(num_classes: int) -> nn.Module:
    return CifarResNet(8, (16, 16, 32, 64), num_classes)


@MODELS.register
def resnet20(num_classes: int) -> nn.Module:
    return CifarResNet(20, (16, 16, 32, 64), num_classes)


@MODELS.register
def resnet32(num_classes: int) -> nn.Module:
    return CifarResNet(32, (16, 16, 32, 64), num_classes)


@MODELS.register
def resnet56(num_classes: int) -> nn.Module:
    return CifarResNet(56, (16, 16, 32, 64), num_classes)


@MODELS.register
def resnet110(num_classes: int) -> nn.Module:
    return CifarResNet(110, (16, 16, 32, 64), num_classes)


@MODELS.register
def resnet8x4(num_classes: int) -> nn.Module:
    return CifarResNet(8, (32, 64, 128, 256), num_classes)


@MODELS.register
def resnet32x4(num_classes: int) -> nn.Module:
    return CifarResNet(32, (32, 64, 128, 256), num_classes)


@MODELS.register
def resnet18(num_classes: int) -> nn.Module:
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


@MODELS.register
def resnet34(num_classes: int) -> nn.Module:
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes)


@MODELS.register
def resnet50(num_classes: int) -> nn.Module:
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


@MODELS.register
def vgg8(num_classes: int) -> nn.Module:
    return VGG(((64,), (128,), (256,), (512,), (512,)), num_classes)


@MODELS.register
def vgg11(num_classes: int) -> nn.Module:
    return VGG(((64,), (128,), (256, 256), (512, 512), (512, 512)), num_classes)


@MODELS.register
def vgg13(num_classes: int) -> nn.Module:
    return VGG(((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)), num_classes)


@MODELS.register
def shufflenetv2(num_classes: int) -> nn.Module:
    return ShuffleNetV2((116, 232, 464), 1024, (3, 7, 3), num_classes)


@MODELS.register
def mobilenetv2(num_classes: int) -> nn.Module:
    return torchvision.models.mobilenet_v2(num_classes=num_classes)


@MODELS.register
def resnet50_imagenet(num_classes: int) -> nn.Module:
    return torchvision.models.resnet50(num_classes=num_classes)


@MODELS.register
def resnet18_imagenet(num_classes: int) -> nn.Module:
    return torchvision.models.resnet18(num_classes=num_classes)


@MODELS.register
def mobilenetv2_imagenet(num_classes: int) -> nn.Module:
    return torchvision.models.mobilenet_v2(num_classes=num_classes)
