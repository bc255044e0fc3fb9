"""Which of many sampled measurements lie beyond their limits, with one error rate over all of them."""

from collections.abc import Sequence

from qcheck.result.measurement import Measurement
from qcheck.spec.arm import Arm
from qcheck.spec.limits import Limits


def beyond(seen: Sequence[Measurement], limits: Limits) -> set[tuple[str, Arm]]:
    """Sampled measurements that lie beyond their limit, by Holm's step-down over all of them at the look's alpha.

    The smallest of m p-values is held to alpha / m, the next to alpha / (m - 1), until one is larger (Holm 1979).
    Warnings blame nobody: each of them is compared by itself.
    """
    told = {(gate.name, gate.arm) for gate in limits.gates if gate.role == "warning"}
    every = [(m.p, m.name, m.arm) for m in seen if m.p is not None]
    found = {(name, arm) for p, name, arm in every if (name, arm) in told and p <= limits.alpha}
    sampled = sorted((item for item in every if item[1:] not in told), key=lambda item: item[0])
    for index, (p, name, arm) in enumerate(sampled):
        if p > limits.alpha / (len(sampled) - index):
            break
        found.add((name, arm))
    return found
