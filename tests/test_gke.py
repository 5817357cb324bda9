"""launch/gke.sh: the JobSet that it makes, and what its pods do under a controller that starts them again as JobSet's
documentation says (a stand-in: no cluster is touched).
"""

import os
import pathlib
import random
import subprocess

import pytest
import yaml

SCRIPT = pathlib.Path(__file__).parents[1] / "launch" / "gke.sh"
OPTIONS = ("--type=v6e", "--topology=4x4", "--image=example.org/a/jinstr:1", "--claim=runs")
KUBECTL = '#!/bin/sh\necho "$*" > "$PLACE/words"\ncat > "$PLACE/jobset.yaml"\n'

# Ends with the next line of $PLACE/statuses; a second word is the step of a checkpoint that it leaves behind.
JINSTR = """
printf '%s\\n' "$@" > "$PLACE/given"
echo >> "$PLACE/calls"
read -r status step < <(sed -n "$(wc -l < "$PLACE/calls")p" "$PLACE/statuses")
if [ -n "$step" ]; then
  sleep 0.02  # time stamps of files are no finer
  mkdir -p "$PLACE/run/checkpoints/$step" && touch "$PLACE/run/checkpoints/$step/manifest.json"
fi
exit "$status"
"""


@pytest.fixture
def place(tmp_path):
    for name, text in (("bin/kubectl", KUBECTL), ("jinstr/launch/local_tpu.sh", JINSTR)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text, "utf-8")
        path.chmod(0o755)
    return tmp_path


def gke(place, *words):
    return subprocess.run(
        ["bash", SCRIPT, *words],
        env=os.environ | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "PLACE": str(place)},
        capture_output=True,
        text=True,
    )


def jobset(place, *words, options=OPTIONS):
    """The manifest that kubectl was given."""
    ended = gke(place, *options, "--", *(words or ("sft", "RUN_DIR=/data/run")))
    assert ended.returncode == 0, ended.stderr
    assert (place / "words").read_text("utf-8") == "create -f -\n"
    return yaml.safe_load((place / "jobset.yaml").read_text("utf-8"))


def job_of(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container_of(manifest):
    (container,) = job_of(manifest)["template"]["spec"]["containers"]
    return container


def test_the_manifest_has_a_pod_for_each_host(place):
    for shape, hosts, chips in (("4x4", 4, 4), ("1x1", 1, 1), ("2x2", 1, 4), ("16x16", 64, 4)):
        options = (OPTIONS[0], f"--topology={shape}", *OPTIONS[2:], "--spot")
        manifest = jobset(place, options=options)
        job, container = job_of(manifest), container_of(manifest)
        assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (hosts, hosts, 0)
        assert container["resources"]["limits"] == {"google.com/tpu": chips}
        selector = job["template"]["spec"]["nodeSelector"]
        assert selector == {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
            "cloud.google.com/gke-tpu-topology": shape,
            "cloud.google.com/gke-spot": "true",
        }
    assert "cloud.google.com/gke-spot" not in str(jobset(place))


@pytest.mark.peers
def test_the_job_fits_the_schema_of_kubernetes(place):
    schema = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}}
    job["spec"] = job_of(jobset(place))
    schema.validate(job, "1.31", strict=True)
    job["spec"]["podFailurePolicy"]["rules"][0]["onExitCode"] = {}  # negative control
    with pytest.raises(schema.ValidationError):
        schema.validate(job, "1.31", strict=True)


def test_rules_that_the_server_would_check(place):
    manifest = jobset(place)
    job = job_of(manifest)
    (rule,) = job["podFailurePolicy"]["rules"]
    values = rule["onExitCodes"]["values"]
    assert values == sorted({*values}) and 0 not in values
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy asks for it
    assert rule["onExitCodes"]["containerName"] == container_of(manifest)["name"]
    assert manifest["spec"]["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]


def test_words_arrive_as_they_were_given(place):
    given = ["sft", 'DATA=a "b" $(HOME) \\ 日本.jsonl', "FIELDS='x: y'\n- z #", "RUN_DIR=/data/run"]
    manifest = jobset(place, *given)
    assert played(place, manifest, ["0"]) == ("Completed", 1)
    assert (place / "given").read_text("utf-8") == "\n".join(["v6e", *given]) + "\n"


def played(place, manifest, statuses):
    """(how the JobSet ends, how often its first pod was started) with pods that end as `statuses` says."""
    (place / "statuses").write_text("\n".join(statuses) + "\n", "utf-8")
    (place / "calls").write_text("", "utf-8")
    job, policy = job_of(manifest), manifest["spec"]["failurePolicy"]
    mistakes = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    container, ending = container_of(manifest), "Failed"
    # In the test /data/run is $PLACE/run.
    words = [word.replace(" /data/run", f" {place}/run") for word in container["args"]]
    for attempt in range(policy["maxRestarts"] + 1):
        pod = subprocess.run(
            [*container["command"], *words],
            cwd=place / "jinstr",
            env=os.environ
            | {"ATTEMPT": str(attempt), "JOB_COMPLETION_INDEX": "0", "PLACE": str(place)},
            capture_output=True,
            text=True,
        )
        if pod.returncode == 0:
            ending = "Completed"
        if pod.returncode == 0 or pod.returncode in mistakes:
            break
    return ending, (place / "calls").read_text("utf-8").count("\n")


def test_twenty_preemptions_and_the_run_ends(place):
    chance, step, statuses = random.Random(11), 0, []
    for _ in range(20):
        step += chance.randrange(1, 50)
        statuses.append(f"{chance.choice([75, 76, 124, 134, 137, 143])} {step}")
    assert played(place, jobset(place), [*statuses, "0"]) == ("Completed", 21)
    few = jobset(place, options=(*OPTIONS, "--restarts=4"))
    assert played(place, few, [*statuses, "0"]) == ("Failed", 5)


def test_without_a_new_checkpoint_it_stops(place):
    manifest = jobset(place)
    assert played(place, manifest, ["137 10", *["137"] * 9]) == ("Failed", 4)
    assert (place / "run.gke").exists()
    # Negative controls: the count begins anew when it is submitted again, and after progress.
    assert played(place, manifest, ["137", "137", "0"]) == ("Completed", 3)
    assert played(place, manifest, ["1", "1", "1 20", "1", "1", "1 21", "0"]) == ("Completed", 7)


@pytest.mark.parametrize("status", [2, 64, 65, 70, 74, 78, 127])
def test_mistakes_are_not_tried_again(place, status):
    assert played(place, jobset(place), [str(status), "0"]) == ("Failed", 1)


def test_print_submits_nothing_and_bad_words_are_told(place):
    words = ("--", "sft", "RUN_DIR=/data/run")
    ended = gke(place, "--print", *OPTIONS, *words)
    assert yaml.safe_load(ended.stdout)["kind"] == "JobSet"
    for options in (
        ("--type=v9", *OPTIONS[1:], *words),
        (*OPTIONS, "--topology=16", *words),
        (*OPTIONS, "--name=Jinstr", *words),
        (*OPTIONS, "--image=a b", *words),
        (*OPTIONS, "--zone=z", *words),
        (*OPTIONS, "--", "sft", "RUN_DIR=runs/a"),
        OPTIONS,
    ):
        assert gke(place, *options).returncode == 64, options
    assert not (place / "words").exists()
    gke(place, *OPTIONS, *words)  # negative control
    assert (place / "words").exists()
