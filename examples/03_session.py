"""One load, many questions: a session keeps the models between schemes."""

import qcheck

with qcheck.Session("demo", lora="faint", steps=6, max_probes=4, build=False) as session:
    for order in ("merge-quantize", "quantize-merge"):
        q1 = session.quantize("int4-g128", order=order)
        measured = {seen.name: seen for seen in session.measure(q1, probes=4) if seen.arm == "adapted"}
        print(f"{order}: {measured['effect_survival'].value:.2f} of the effect is left")
        print(session.judge(q1).why())
