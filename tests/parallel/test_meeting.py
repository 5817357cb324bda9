"""Where the processes of a run find each other, by the variables of launchers; nothing is started here."""

import http.server
import threading

import pytest

from jinstr import errors
from jinstr.parallel import addresses, processes

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[007-010,012]",
    "SLURM_STEP_NUM_TASKS": "10",
    "SLURM_STEP_TASKS_PER_NODE": "2(x5)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
BY_HAND = {
    "JINSTR_COORDINATOR": "10.0.0.1:8476",
    "JINSTR_PROCESSES": "4",
    "JINSTR_PROCESS": "2",
}


def found(variables, **others):
    address = addresses.find(variables | others)
    return address and address[:4]


def test_by_hand_comes_first():
    assert found(BY_HAND) == ("10.0.0.1:8476", 4, 2, None)
    assert found(SLURM | BY_HAND) == found(BY_HAND) != found(SLURM)
    assert found(BY_HAND, JINSTR_PROCESSES="1", JINSTR_PROCESS="0") is None
    assert found(BY_HAND, JINSTR_COORDINATOR="[fe80::1]:80")[0] == "[fe80::1]:80"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"JINSTR_PROCESS": ""}, "JI-PROCESS-001: .*JINSTR_PROCESS is not set"),
        ({"JINSTR_COORDINATOR": "10.0.0.1"}, "JI-PROCESS-002: .*'10.0.0.1' is not host:port"),
        ({"JINSTR_PROCESS": "4"}, "JI-PROCESS-003"),
        ({"JINSTR_PROCESS": "-1"}, "JI-PROCESS-003"),
        ({"JINSTR_PROCESSES": "four"}, "JI-PROCESS-003"),
    ],
)
def test_what_is_incomplete_or_contradicts_is_refused(change, words):
    with pytest.raises(errors.ConfigError, match=words):
        addresses.find(BY_HAND | change)


def test_a_step_of_srun():
    port = 61440 + 4711 % 4096
    # Two tasks on each node: each has one of its GPUs.
    assert found(SLURM) == (f"node007:{port}", 10, 3, 1)
    one = {"SLURM_STEP_TASKS_PER_NODE": "1(x10)", "SLURM_LOCALID": "0"}
    assert found(SLURM | one) == (f"node007:{port}", 10, 3, None)
    assert found(SLURM, CUDA_VISIBLE_DEVICES="0,1")[3] == 1
    assert found(SLURM, CUDA_VISIBLE_DEVICES="0")[3] is None  # srun --gpus-per-task=1
    for nodes in ("node007", "node007,other", "node007,node[08-09]"):
        assert found(SLURM, SLURM_STEP_NODELIST=nodes)[0] == f"node007:{port}"
    assert found(SLURM, SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0") is None
    # The batch script of a job is no step, though it has a rank.
    assert found({name: v for name, v in SLURM.items() if "STEP" not in name}) is None
    with pytest.raises(errors.ConfigError, match="JI-PROCESS-004"):
        found(SLURM, SLURM_PROCID="10")


def test_mpirun_of_open_mpi():
    port = 61440 + 1531576320 // 4096 % 4096
    assert found(OPEN_MPI) == (f"10.96.0.1:{port}", 2, 1, None)
    assert found(OPEN_MPI, OMPI_COMM_WORLD_LOCAL_SIZE="8", OMPI_COMM_WORLD_LOCAL_RANK="1")[3] == 1
    uri = "1314521088.0;tcp6://[fe80::b9b:ac5d,2620:10d::2]:43370"
    assert found(OPEN_MPI, OMPI_MCA_orte_hnp_uri=uri)[0].startswith("[fe80::b9b:ac5d]:")
    assert found(OPEN_MPI, OMPI_COMM_WORLD_SIZE="1", OMPI_COMM_WORLD_RANK="0") is None
    with pytest.raises(errors.ConfigError, match="JI-PROCESS-005: .*JINSTR_COORDINATOR"):
        found(OPEN_MPI, OMPI_MCA_orte_hnp_uri="")


def test_without_a_launcher_a_process_is_alone():
    assert found({}) is None and found({"TPU_WORKER_ID": "1"}) is None
    assert (processes.count(), processes.index(), processes.client()) == (1, 0, None)


@pytest.fixture
def metadata(monkeypatch):
    """The metadata server of a TPU machine: a dict of what it tells."""
    told = {"tpu-env": ""}

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            self.send_response(200 if name in told else 404)
            self.end_headers()
            self.wfile.write(told.get(name, "").encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(addresses, "_has_tpu", lambda: True)
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    yield told
    server.shutdown()


def test_the_hosts_of_a_tpu_slice(metadata):
    metadata |= {
        "agent-worker-number": "1",
        "worker-network-endpoints": "a:1:127.0.0.1,b:2:127.0.0.2",
    }
    assert addresses.of_tpu()[:4] == ("127.0.0.1:8482", 2, 1, None)
    metadata["worker-network-endpoints"] = "a:1:127.0.0.1"  # a single host
    metadata["agent-worker-number"] = "0"
    assert addresses.of_tpu() is None


def test_the_pods_of_a_tpu_slice(metadata, monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "127.0.0.3,127.0.0.4,127.0.0.5")
    monkeypatch.setenv("TPU_WORKER_ID", "2")
    assert addresses.of_tpu()[:4] == ("127.0.0.3:8482", 3, 2, None)
    monkeypatch.setattr(addresses, "_has_tpu", lambda: False)
    assert addresses.of_tpu() is None  # JAX_PLATFORMS=cpu, or no TPU: nobody is asked
