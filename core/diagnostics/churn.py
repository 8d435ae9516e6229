"""How much one step on some samples changes what the network says about others."""

from __future__ import annotations

from torch import Tensor

from core.diagnostics.aside import stepped
from core.part import Part, Step
from core.state import State, Tensors, weights


def churn(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """What one optimizer step on the first half of the batch changes on the second half, which it has not seen.

    Of networks that predict values: `value_churn` is the mean |Q' - Q| over samples and all actions (all critics), and
    `policy_churn`, where the largest value is the decision, the share of samples whose decision is another one. Of
    others: `output_churn` is the mean Euclidean norm of the change, for a policy that of its mean action. The step is
    taken on the side and thrown away; what interventions do after a step is not in it, and where one of them steps in
    the optimizer's place (upgd) nothing is reported. Larger batches churn less:
    compare at one batch size. Source: Schaul et al. 2022, "The phenomenon of policy churn"; Tang & Berseth 2024; single
    steps and held-out samples are our inference.
    """
    half = len(part.inputs(step.batch)[0]) // 2
    if not half or part.optim.hold:
        return {}
    noise = {k: noise if k in step.shared else noise[:half] for k, noise in step.noise.items()}
    grads, _ = part.gradient(step.states, rows(step.batch, 0, half), noise)
    new, _ = stepped(part, s, grads)
    unseen = part.inputs(rows(step.batch, half, 2 * half))
    before, after = (part.decode(part(numbers, *unseen)[0]) for numbers in (weights(s), new | s.buffers))
    return differences(before, after, part.greedy, valued=part.greedy or "q" in step.outcome.values)


def differences(before: Tensor, after: Tensor, greedy: bool, valued: bool) -> dict[str, Tensor]:
    """Between two sets of decoded outputs, [B, numbers]. greedy: the largest number is the decision."""
    if not valued:
        return {"output_churn": (after - before).norm(dim=-1).mean()}
    found = {"value_churn": (after - before).abs().mean()}
    if greedy:
        found["policy_churn"] = (after.argmax(-1) != before.argmax(-1)).float().mean()
    return found


def rows(tensors: Tensors, start: int, stop: int) -> Tensors:
    """Some samples of a batch; scalars belong to all."""
    return {k: t[start:stop] if t.ndim else t for k, t in tensors.items()}
