#!/usr/bin/env python3
"""All-reduce of 64 MiB of floats among the ranks of one host: shared memory, beside Open MPI (alternately in the same run)
and Gloo (PyTorch's torch.distributed on CPUs), run after run.

    make benches && python3 dev/bench/bench_comm_peers.py [rounds]     (3)

Needs mpirun, and torch for Gloo. Prints a line for each number of ranks and round, and the medians of the ratios.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
BENCH = os.path.join(os.environ.get("BUILD", "build"), "bench", "bench_comm")
GLOO = r"""
import statistics, sys, time, torch, torch.distributed as dist
rank, size, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=size)
x, times = torch.ones(1 << 24), []
for _ in range(10):
    dist.barrier()
    start = time.perf_counter()
    dist.all_reduce(x)
    times.append(time.perf_counter() - start)
    x.fill_(1)
if rank == 0:
    print(1e6 * statistics.median(times[2:]))
"""


def ours(ranks):
    """Microseconds of ours, and of MPI_Allreduce."""
    out = subprocess.run(["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(ranks), BENCH, "--backend=shm", "-b", "64M",
                          "-n", "10", "--compare-mpi", "--json"], capture_output=True, text=True, check=True).stdout
    line = json.loads(next(text for text in out.split("\n") if text.startswith("{")))
    return line["median_us"], line["mpi"][0]["median_us"]


def gloo(ranks):
    with tempfile.TemporaryDirectory() as folder:
        jobs = [subprocess.Popen([sys.executable, "-c", GLOO, str(rank), str(ranks), folder + "/store"], stdout=subprocess.PIPE, text=True)
                for rank in range(ranks)]
        return float([job.communicate()[0] for job in jobs][0])


def main():
    for ranks in (2, 4, 8):
        ratios = []
        for _ in range(ROUNDS):
            us, mpi = ours(ranks)
            other = gloo(ranks)
            ratios.append((mpi / us, other / us))
            print(f"{ranks} ranks: shm {us / 1e3:.2f} ms, Open MPI {mpi / 1e3:.1f} ms: {mpi / us:.1f}x, Gloo {other / 1e3:.1f} ms: {other / us:.1f}x",
                  flush=True)
        print(f"{ranks} ranks, medians: {statistics.median(r[0] for r in ratios):.1f}x Open MPI, {statistics.median(r[1] for r in ratios):.1f}x Gloo")


if __name__ == "__main__":
    main()
