"""What is learned: losses, and how actions are chosen. `AGENTS` is the choice of the option `agent`."""

from agents.dqn import DQN
from agents.sac import SAC

AGENTS = {"dqn": DQN, "sac": SAC}
