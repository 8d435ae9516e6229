"""What is learned: losses, and how actions are chosen. `AGENTS` is the choice of the option `agent`."""

from agents.dqn import DQN
from agents.drq import DrQ
from agents.drq_v2 import DrQV2
from agents.iql import IQL
from agents.sac import SAC

AGENTS = {"dqn": DQN, "sac": SAC, "drq_sac": DrQ, "drq_v2": DrQV2, "iql": IQL}
