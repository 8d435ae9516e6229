"""Supervised learners on changing data: where the field found plasticity loss, and an answer takes minutes.

`LEARNERS` are choices of the option `agent` beside the agents.
"""

from testbeds.classifier import Classifier
from testbeds.regressor import Regressor

LEARNERS = {"classifier": Classifier, "regressor": Regressor}
