#!/usr/bin/env python3
"""test_launch.py: the launch scripts, as far as they can be checked without a cluster: which mpirun or srun they call
(stand-ins print their arguments), how a job that stopped and saved queues itself again, the shape of the MPIJob, and
sbatch's own opinion where there is one."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import lab
from lab import check


def run(command, folder, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("RANKS", "THREADS", "NETWORK", "PROGRAM")}
    env.update(environment, PATH=f"{folder}:{env['PATH']}")
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def stand_in(folder, name, script):
    path = os.path.join(folder, name)
    with open(path, "w") as f:
        f.write("#!/bin/sh\n" + script)
    os.chmod(path, 0o755)


def test_mpirun(folder):
    stand_in(folder, "mpirun", 'echo "threads=$OMP_NUM_THREADS" "$@"\n')
    r = run(["scripts/launch/mpirun_node.sh", "--preset=tiny", "a b"], folder, RANKS="3", THREADS="2")
    check(r.returncode == 0 and r.stdout.startswith("threads=2 -np 3 "), f"mpirun_node: {r.stdout}{r.stderr}")
    check(r.stdout.rstrip().endswith("./train_gpt2 --preset=tiny a b"), f"mpirun_node: {r.stdout}")
    stand_in(folder, "mpirun", 'trap "exit 75" USR2\necho ready\nfor i in $(seq 600); do sleep 0.05; done\n')
    for number in (signal.SIGINT, signal.SIGTERM):  # mpirun itself would kill its ranks
        p = subprocess.Popen(["scripts/launch/mpirun_node.sh"], env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
                             stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        p.send_signal(number)
        try:
            p.wait(20)
        except subprocess.TimeoutExpired:
            p.kill()
        check(p.returncode == 75, f"mpirun_node: {number.name}: exit {p.returncode}, not 75")
    stand_in(folder, "mpirun", 'echo "threads=$OMP_NUM_THREADS" "$@"\n')
    hosts = os.path.join(folder, "hosts")
    with open(hosts, "w") as f:
        f.write("# all of them\nnode1 slots=2\n\n  node2\nnode3 max_slots=9 slots=4 # fast\n")
    r = run(["scripts/launch/mpirun_hosts.sh", hosts, "--preset=tiny"], folder, NETWORK="eth7")
    check(" -np 7 " in " " + r.stdout and f"--hostfile {hosts}" in r.stdout, f"mpirun_hosts: {r.stdout}{r.stderr}")
    check("btl_tcp_if_include eth7" in r.stdout and f"--wdir {os.getcwd()}" in r.stdout, f"mpirun_hosts: {r.stdout}")
    check(run(["scripts/launch/mpirun_hosts.sh"], folder).returncode == 2, "mpirun_hosts without a host file")
    with open(hosts, "w") as f:
        f.write("# none\n")
    check(run(["scripts/launch/mpirun_hosts.sh", hosts], folder).returncode == 2, "mpirun_hosts without hosts")


def test_slurm(folder):
    stand_in(folder, "scontrol", f'echo "$@" >>{folder}/requeued\n')
    stand_in(folder, "program", "exit 0\n")
    job = {"SLURM_SUBMIT_DIR": folder, "SLURM_JOB_ID": "17", "SLURM_NTASKS": "4", "SLURM_CPUS_ON_NODE": "8",
           "PROGRAM": "./program"}
    for kinds, expected in (("none pmi2 pmix", "pmix"), ("none pmi2", "none")):
        for code in (0, 1, 75):
            stand_in(folder, "srun", f'[ "$1" = --mpi=list ] && {{ echo {kinds} >&2; exit 0; }}\n'
                                     f'echo "$OMP_NUM_THREADS" "$@"\nexit {code}\n')
            r = run(["scripts/launch/slurm.sh", "--preset=tiny"], folder, **job)
            check(r.returncode == code, f"slurm: exit {r.returncode}, not {code}: {r.stderr}")
            check(re.search(rf"^8 --mpi={expected} .*\./program --preset=tiny$", r.stdout, re.M), f"slurm: {r.stdout}")
            requeued = os.path.exists(f"{folder}/requeued")
            check(requeued == (code == 75), f"slurm: exit {code}, queued again: {requeued}")
            if requeued:
                os.remove(f"{folder}/requeued")
    check(run(["scripts/launch/slurm.sh"], folder, SLURM_SUBMIT_DIR="/").returncode == 1, "slurm without a program")
    if shutil.which("sbatch"):
        r = subprocess.run(["sbatch", "--test-only", "scripts/launch/slurm.sh"], capture_output=True, text=True)
        check(r.returncode == 0, f"sbatch --test-only: {r.stderr}")


def test_mpijob():
    try:
        import yaml
    except ImportError:
        print("test_launch: PyYAML is missing, the MPIJob is not checked")
        return
    with open("scripts/launch/mpijob.yaml") as f:
        job = yaml.safe_load(f)
    check(job["apiVersion"] == "kubeflow.org/v2beta1" and job["kind"] == "MPIJob", "apiVersion and kind")
    spec = job["spec"]
    check(set(spec) <= {"slotsPerWorker", "sshAuthMountPath", "runPolicy", "mpiReplicaSpecs", "mpiImplementation",
                        "launcherCreationPolicy", "runLauncherAsWorker"}, f"fields of spec: {list(spec)}")
    roles = spec["mpiReplicaSpecs"]
    check(set(roles) == {"Launcher", "Worker"} and roles["Launcher"]["replicas"] == 1, "roles")
    home = os.path.dirname(spec["sshAuthMountPath"])
    with open("scripts/launch/Containerfile") as f:
        container = f.read()
    check(f"HostKey {spec['sshAuthMountPath']}/id_rsa" in container, "the host key is the operator's")
    for name, role in roles.items():
        check(set(role) <= {"replicas", "restartPolicy", "template"}, f"fields of {name}: {list(role)}")
        pod = role["template"]["spec"]
        mounts = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
        check(mounts <= {v["name"] for v in pod.get("volumes", [])}, f"volumes of {name}")
        check(all(isinstance(a, str) for c in pod["containers"] for a in c.get("args", [])), f"args of {name}")
        check(all(c["securityContext"]["runAsUser"] == 1000 for c in pod["containers"]), f"user of {name}")
    check(f"{home}/.sshd_config" in roles["Worker"]["template"]["spec"]["containers"][0]["args"], "sshd's file")


def main():
    with tempfile.TemporaryDirectory() as folder:
        test_mpirun(folder)
        test_slurm(folder)
        test_mpijob()
    return lab.report("launch")


sys.exit(main())
