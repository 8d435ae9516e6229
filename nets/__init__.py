"""Networks, and what their outputs mean. `NETS` and `VALUES` are the choices of the options `net` and `value`."""

from nets.body import CNN, VGG16, DrQ, Impala, Nature, ResNet18, Vectors, ViT
from nets.residual import Bro, Simba
from nets.value import C51, HLGauss, Quantiles, Scalar, TwoHot

NETS = {
    "mlp": Vectors,
    "simba": Simba,
    "bro": Bro,
    "nature": Nature,
    "drq": DrQ,
    "impala": Impala,
    "cnn": CNN,
    "vgg16": VGG16,
    "resnet18": ResNet18,
    "vit": ViT,
}
VALUES = {"scalar": Scalar, "two_hot": TwoHot, "hl_gauss": HLGauss, "c51": C51, "quantiles": Quantiles}
