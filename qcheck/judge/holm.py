"""Which of many sampled measurements lie beyond their limits, with one error rate over all of them."""

from collections.abc import Sequence

from qcheck.result.measurement import Measurement
from qcheck.spec.arm import Arm
from qcheck.spec.limits import Limits


def beyond(measurements: Sequence[Measurement], limits: Limits) -> set[tuple[str, Arm]]:
    """The sampled measurements that lie beyond their limit, by Holm's step-down over all of them at the look's alpha.

    The smallest of m p-values is held to alpha / m, the next to alpha / (m - 1), until one is larger (Holm 1979).
    Gates with the role "warning" blame nobody: each of them is tested by itself, at alpha.
    """
    warnings = {(gate.name, gate.arm) for gate in limits.gates if gate.role == "warning"}
    p_values = [(m.p, m.name, m.arm) for m in measurements if m.p is not None]
    exceeding = {(name, arm) for p, name, arm in p_values if (name, arm) in warnings and p <= limits.alpha}
    sampled = sorted((item for item in p_values if item[1:] not in warnings), key=lambda item: item[0])
    for index, (p, name, arm) in enumerate(sampled):
        if p > limits.alpha / (len(sampled) - index):
            break
        exceeding.add((name, arm))
    return exceeding
