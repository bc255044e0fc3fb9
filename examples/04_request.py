"""The request of a check is a value: every report holds it whole, so a check can be asked for again, or changed."""

import tempfile

import qcheck

report = qcheck.check("demo", lora="flat", scheme="int8", steps=6, max_probes=4, build=False)
with tempfile.TemporaryDirectory() as folder:
    path = report.save(folder)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
    request = qcheck.load_report(folder).spec

again = qcheck.check(request)  # found in the cache
assert again["int8"]["effect_survival"].value == report["int8"]["effect_survival"].value

stronger = request.changed(adapters=tuple(used.model_copy(update={"weight": 1.5}) for used in request.adapters))
print(f"at weight 1.5: {qcheck.check(stronger)['int8'].verdict}")
