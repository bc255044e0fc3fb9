"""One check: does the adapter survive INT8 on a Jetson AGX Orin?

Few steps and probes keep this example quick; leave ``steps`` and ``max_probes`` out for a verdict that counts.
"""

import qcheck

report = qcheck.check("demo", lora="flat", scheme="int8", steps=6, max_probes=4, build=False)

case = report["int8"]
survival = case["effect_survival"]
print(
    f"{case.verdict}: {survival.value:.2f} of the adapter's effect is left, [{survival.low:.2f}, {survival.high:.2f}]"
)
print(case.why())
