"""Stands in for SLURM's commands where the manual is built: jobs run at once, one after another, on this machine.

``sbatch`` reads the options of the script and of the command line, and runs the script once for each number of its
array. ``srun`` starts as many processes as the job has tasks, each told its place as SLURM tells it. A job that fails
is shown and makes ``sbatch`` fail, which SLURM's would not.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path


def sbatch(words: list[str]) -> int:
    parser = argparse.ArgumentParser("sbatch")
    parser.add_argument("--parsable", action="store_true")
    for name in ("--array", "--dependency", "--job-name", "--time", "--signal", "--open-mode", "--cpus-per-task",
                 "--gpus-per-node"):  # fmt: skip
        parser.add_argument(name, default="")
    for name in ("--nodes", "--ntasks", "--ntasks-per-node"):
        parser.add_argument(name, type=int, default=1)
    parser.add_argument("--requeue", action="store_true")
    parser.add_argument("script", type=Path)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    script = parser.parse_args(words).script
    written = re.findall(r"^#SBATCH (.+)$", script.read_text(encoding="utf-8"), re.M)
    own = [word for line in written for word in shlex.split(line.split("  #")[0])]
    told = parser.parse_args([*own, *words])
    job = os.getpid()
    settings = {
        "SLURM_JOB_ID": str(job), "SLURM_ARRAY_JOB_ID": str(job), "SLURM_NNODES": str(told.nodes),
        "SLURM_NTASKS": str(max(told.ntasks, told.nodes * told.ntasks_per_node)),
        "SLURM_NTASKS_PER_NODE": str(told.ntasks_per_node), "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NODELIST": "localhost", "SLURM_JOB_NAME": told.job_name or "job", "REQUEUE_ON_FAILURE": "",
    }  # fmt: skip
    if told.gpus_per_node:
        settings["SLURM_GPUS_ON_NODE"] = told.gpus_per_node
    first, _, last = told.array.partition("-")
    numbers = [str(i) for i in range(int(first), int(last or first) + 1)] if first else [""]
    for number in numbers:
        extra = {"SLURM_ARRAY_TASK_ID": number} if number else {}
        log = Path(f"slurm-{job}{'_' if number else ''}{number}.out")
        with log.open("w") as file:
            done = subprocess.run(["bash", str(script), *told.words], env=os.environ | settings | extra, check=False,
                                  stdout=file, stderr=file)  # fmt: skip
        if done.returncode:
            print("\n".join(log.read_text().splitlines()[-30:]), file=sys.stderr)
            return done.returncode
    print(job if told.parsable else f"Submitted batch job {job}")
    return 0


def srun(words: list[str]) -> int:
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"])
    per_node = max(1, tasks // nodes)
    started = []
    for rank in range(tasks):
        place = {
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank % per_node),
            "SLURM_NODEID": str(rank // per_node),
        }
        started.append(subprocess.Popen(words, env=os.environ | place))
    return max(process.wait() for process in started)


def scontrol(words: list[str]) -> int:
    if words[:2] == ["show", "hostnames"]:
        print("\n".join(["localhost"] * int(os.environ["SLURM_NNODES"])))
        return 0
    print(f"no job is queued again here: {' '.join(words)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
