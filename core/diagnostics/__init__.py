"""What is measured about a network, one function per quantity, in tiers by cost.

Each function is pure, (part, state, step) -> {name: number}, sees one seed, and says in its docstring whose definition
it is. The engine runs them on a batch of their own, from streams of their own: training never notices.
"""

from core.diagnostics.ranks import feature_ranks
from core.diagnostics.units import dead, dormant
from core.diagnostics.values import target_scale, value_scale
from core.diagnostics.weights import distance_from_birth, gradient_norm, parameter_norm, update_ratio

CHEAP = (
    dormant,
    dead,
    parameter_norm,
    distance_from_birth,
    gradient_norm,
    update_ratio,
    target_scale,
    value_scale,
)
MIDDLE = (feature_ranks,)
