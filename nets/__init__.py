"""Networks, and what their outputs mean. `NETS` and `VALUES` are the choices of the options `net` and `value`."""

from nets.q_network import Impala, Nature, Vectors
from nets.value import C51, HLGauss, Scalar, TwoHot

NETS = {"mlp": Vectors, "nature": Nature, "impala": Impala}
VALUES = {"scalar": Scalar, "two_hot": TwoHot, "hl_gauss": HLGauss, "c51": C51}
