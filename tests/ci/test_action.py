"""action.yml: what GitHub accepts, and what its steps run, with a qcheck and a gh that note what they are asked."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from qcheck.cli.app import app
from tests.ci.actions import ACTION, Job, load

TOP = {"name", "author", "description", "inputs", "outputs", "runs", "branding"}
STEP = {"name", "id", "if", "env", "run", "shell", "working-directory", "uses", "with", "continue-on-error"}
COMMANDS = typer.main.get_command(app)

QCHECK = """#!/usr/bin/env python3
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
with (here / "calls.jsonl").open("a") as stream:
    stream.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "cache":
    sys.exit()
plan = json.loads((here / "plan.json").read_text())
out = Path(sys.argv[sys.argv.index("--out") + 1])
for name, text in plan["files"].items():
    out.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(text)
print("error: no such LoRA", file=sys.stderr)
sys.exit(plan["exit"])
"""

GH = """#!/usr/bin/env python3
import json, os, subprocess, sys
from pathlib import Path
here, arguments = Path(__file__).parent, sys.argv[1:]
if (here / "no-gh").exists():
    sys.exit("HTTP 403: Resource not accessible by integration")
comments = json.loads((here / "comments.json").read_text())
if "--jq" in arguments:
    query = ["jq", "-r", arguments[arguments.index("--jq") + 1]]
    sys.exit(subprocess.run(query, input=json.dumps(comments), text=True).returncode)
body = Path(next(one for one in arguments if one.startswith("body=@"))[6:]).read_text()
path = arguments[arguments.index("--method") + 2]
if "PATCH" in arguments:
    comments = [one | {"body": body} if path.endswith(f"/comments/{one['id']}") else one for one in comments]
else:
    comments.append({"id": 30 + len(comments), "body": body, "path": path})
(here / "comments.json").write_text(json.dumps(comments))
"""


def _report(*verdicts: str) -> str:
    return json.dumps({"cases": [{"verdict": verdict} for verdict in verdicts]}, indent=1)


def _job(tmp_path: Path, files: dict[str, str], code: int, event: str = "pull_request", **inputs: str) -> Job:
    tools = tmp_path / "tools"
    tools.mkdir(parents=True)
    for name, text in (("qcheck", QCHECK), ("gh", GH)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tools / "plan.json").write_text(json.dumps({"files": files, "exit": code}))
    (tools / "comments.json").write_text(json.dumps([{"id": 11, "body": "nice work"}]))
    given = {name.replace("_", "-"): value for name, value in inputs.items()}
    return Job(tmp_path, tools, {"install": "false"} | given, event)


def _calls(job: Job) -> list[list[str]]:
    return [json.loads(line) for line in (job.tools / "calls.jsonl").read_text().splitlines()]


def _comments(job: Job) -> list[str]:
    return [one["body"] for one in json.loads((job.tools / "comments.json").read_text())]


needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="no jq, which stands for that of gh")


def test_the_action_is_one_that_github_accepts() -> None:
    action = load()
    assert set(action) <= TOP
    assert action["name"]
    assert action["description"]
    assert all(set(one) <= {"description", "required", "default"} for one in action["inputs"].values())
    assert all(set(one) == {"description", "value"} for one in action["outputs"].values())
    assert set(action["runs"]) == {"using", "steps"}
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        assert set(step) <= STEP
        assert ("run" in step) != ("uses" in step)
        assert ("run" in step) == ("shell" in step)
        assert re.fullmatch(r"actions/[\w/-]+@v\d+", step.get("uses", "actions/x@v1"))


def test_what_expressions_name_exists_and_none_is_pasted_into_a_script() -> None:
    action, text = load(), ACTION.read_text("utf-8")
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(action["inputs"])
    written = set(re.findall(r'echo "([\w-]+)=', text))
    assert set(re.findall(r"steps\.check\.outputs\.([\w-]+)", text)) <= written
    for step in action["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert subprocess.run(["bash", "-n", "-c", step.get("run", "")], check=False).returncode == 0


def test_everything_that_runs_checks_is_installed_with_the_extras_of_the_readme() -> None:
    root = ACTION.parent
    (wanted,) = re.findall(r"'\.\[([\w,]+)\]'.*# runs checks", (root / "README.md").read_text("utf-8"))
    for name in ("action.yml", "Containerfile", "docs/ci.md", "constraints.txt"):
        (extras,) = set(
            re.findall(r"(?:PATH|\.|qcheck-source|qcheck-edge)\[([a-z,]+)\]", (root / name).read_text("utf-8"))
        )
        assert extras == wanted, name


def test_the_page_gives_inputs_and_reads_outputs_that_exist() -> None:
    page, action = (ACTION.parent / "docs" / "ci.md").read_text("utf-8"), load()
    jobs = [yaml.safe_load(block).get("jobs", {}) for block in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)]
    steps = [step for job in jobs for one in job.values() for step in one["steps"]]
    (step,) = (step for step in steps if "OWNER/qcheck@" in step.get("uses", ""))
    assert set(step["with"]) <= set(action["inputs"])
    assert set(re.findall(r"steps\.qcheck\.outputs\.([\w-]+)", page)) <= set(action["outputs"])
    rows = page.partition("| input | is |")[2].partition("\n\n")[0]
    named = {
        name
        for line in rows.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([\w-]+)`", line.split("|")[1])
    }
    assert named == set(action["inputs"])


@needs_jq
@pytest.mark.parametrize(("verdict", "code"), [("PASS", 0), ("NEEDS-QAT", 1), ("INCONCLUSIVE", 3)])
def test_a_check_is_summed_up_commented_kept_and_its_exit_code_is_the_jobs(
    verdict: str, code: int, tmp_path: Path
) -> None:
    files = {"report.json": _report(verdict), "report.md": f"### {verdict} ✅\n"}
    job = _job(tmp_path, files, code, base="demo", lora="my style.safetensors", scheme="int8\nfp8", require="any")
    assert job.run() == code
    (check, prune) = _calls(job)
    assert check[:2] == ["check", "demo"]
    assert check[2:] == [
        *("--out", "qcheck-out/action", "--lora", "my style.safetensors", "--scheme", "int8", "--scheme", "fp8"),
        *("--quiet", "--require", "any"),
    ]
    assert prune[:2] == ["cache", "prune"]
    assert job.outputs["verdict"] == verdict
    assert job.outputs["folder"] == "qcheck-out/action"
    assert job.outputs["exit-code"] == str(code)
    assert f"### {verdict} ✅" in (tmp_path / "github_step_summary").read_text("utf-8")
    assert _comments(job) == ["nice work", f"<!-- qcheck action: qcheck -->\n### {verdict} ✅\n"]
    assert job.used == ["actions/cache/restore", "actions/cache/save", "actions/upload-artifact"]


@needs_jq
def test_the_comment_of_an_earlier_run_is_replaced_and_that_of_another_job_is_not(tmp_path: Path) -> None:
    job = _job(tmp_path, {"report.json": _report("PASS"), "report.md": "new\n"}, 0, lora="x", name="orin")
    mine, other = "<!-- qcheck action: orin -->\nold\n", "<!-- qcheck action: thor -->\nold\n"
    (job.tools / "comments.json").write_text(json.dumps([{"id": 5, "body": other}, {"id": 6, "body": mine}]))
    assert job.run() == 0
    assert _comments(job) == [other, "<!-- qcheck action: orin -->\nnew\n"]


def test_bad_input_says_what_was_wrong_and_fails(tmp_path: Path) -> None:
    job = _job(tmp_path, {}, 2, event="push", base="demo", lora="x")
    assert job.run() == 2
    assert job.outputs["verdict"] == ""
    summary = (tmp_path / "github_step_summary").read_text("utf-8")
    assert "exit code 2" in summary
    assert "error: no such LoRA" in summary


def test_a_token_that_may_not_comment_is_a_warning(tmp_path: Path) -> None:
    job = _job(tmp_path, {"report.json": _report("PASS"), "report.md": "x\n"}, 0, lora="x")
    (job.tools / "no-gh").touch()
    assert job.run() == 0
    assert "::warning::" in job.printed


@pytest.mark.parametrize("require", ["", "any", "none"])
def test_several_adapters_are_a_sweep_whose_exit_code_is_the_job_s(require: str, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"verdict": one}, separators=(",", ":")) + "\n" for one in ("PASS", "NEEDS-QAT"))
    files = {"index.jsonl": rows, "summary.md": "## 2 cases\n"}
    for code in (0, 1, 3):
        place = tmp_path / str(code)
        job = _job(place, files, code, event="push", lora="loras/*.safetensors", require=require)
        assert job.run() == code
        required = ["--require", require] if require else []
        assert _calls(job)[0] == [
            *("sweep", "--out", "qcheck-out/action", "--lora", "loras/*.safetensors"),
            *required,
        ]
        assert job.outputs["verdict"] == "NEEDS-QAT PASS"
        assert "## 2 cases" in (place / "github_step_summary").read_text("utf-8")


@pytest.mark.parametrize("lora", ["a.safetensors", "a.safetensors\nb.safetensors"])
def test_the_command_line_is_one_that_qcheck_takes(lora: str, tmp_path: Path) -> None:
    every = {"target": "jetson-thor-t5000", "limits": "default", "arguments": "--max-probes=16\n--no-build"}
    job = _job(tmp_path, {}, 0, event="push", base="demo", lora=lora, scheme="int8", require="all", **every)
    job.run()
    (command, *words), (cache, prune, *bounds) = _calls(job)
    COMMANDS.commands[cache].commands[prune].make_context(prune, bounds)  # type: ignore[attr-defined]
    context = COMMANDS.commands[command].make_context(command, words)  # type: ignore[attr-defined]
    assert context.params["max_probes"] == 16
    assert context.params["limits"] == "default"


def test_without_inputs_the_configuration_of_the_repository_decides(tmp_path: Path) -> None:
    job = _job(tmp_path, {}, 0, event="push", cache="false")
    assert job.run() == 0
    assert _calls(job) == [["check", "--out", "qcheck-out/action", "--quiet"]]
    assert job.used == ["actions/upload-artifact"]
