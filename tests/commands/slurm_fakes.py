"""sbatch, srun, scontrol, scancel and squeue for tests: they start real processes on this machine, by what SLURM does with them.

Called as ``python slurm_fakes.py PROGRAM arguments``; jobs lie in the folder FAKE_SLURM, each in one of its number.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "scontrol", "scancel", "squeue")


def install(folder: Path, programs: tuple[str, ...] = PROGRAMS) -> None:
    """Put programs into a folder that is to stand in PATH."""
    folder.mkdir(exist_ok=True)
    for name in programs:
        line = f'exec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"'
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)


def words(line: str) -> list[str]:
    """The words behind #SBATCH as sbatch reads them: a backslash counts within quotes of either kind, and # ends them."""
    found, word, quote, position = [], "", "", 0
    while position < len(line):
        letter = line[position]
        if letter == "\\":
            position += 1
            word += line[position]
        elif quote:
            word, quote = (word, "") if letter == quote else (word + letter, quote)
        elif letter in "'\"":
            quote = letter
        elif letter == "#":
            break
        elif letter.isspace():
            found, word = [*found, word] if word else found, ""
        else:
            word += letter
        position += 1
    assert not quote, line
    return [*found, word] if word else found


def asked(script: str) -> list[str]:
    """The options that stand in a script, up to its first command."""
    found = []
    for line in script.splitlines()[1:]:
        if not line.startswith("#SBATCH"):
            break
        found += words(line.removeprefix("#SBATCH"))
    return found


def jobs() -> Path:
    return Path(os.environ["FAKE_SLURM"])


def sbatch(arguments: list[str]) -> int:
    *given, script = arguments
    if (refusal := jobs() / "refusal").exists():
        print(refusal.read_text(), file=sys.stderr)
        return 1
    assert given.pop(0) == "--parsable"
    options = dict(
        option.removeprefix("--").partition("=")[::2] for option in [*asked(Path(script).read_text()), *given]
    )
    number = str(4711 + len([path for path in jobs().iterdir() if path.name.isdigit()]))
    job = jobs() / number
    job.mkdir()
    (job / "script").write_text(Path(script).read_text())
    told = {"arguments": given, "options": options, "environment": dict(os.environ), "folder": os.getcwd()}
    (job / "told.json").write_text(json.dumps(told))
    if not (jobs() / "hold").exists():
        command = [sys.executable, __file__, "control", number]
        subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"{number};here")
    return 0


def control(arguments: list[str]) -> int:
    """Run the script of a job, again as often as it is requeued; leaves its exit codes."""
    job, codes = jobs() / arguments[0], list[int]()
    options = json.loads((job / "told.json").read_text())["options"]
    log = Path(options["output"].replace("%%", "\0").replace("%j", job.name).replace("\0", "%"))
    per_node, nodes = int(options["ntasks-per-node"]), int(options["nodes"])
    own = {
        "SLURM_JOB_ID": job.name,
        "SLURM_JOB_NAME": options["job-name"],
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(nodes * per_node),
        "SLURM_NTASKS_PER_NODE": str(per_node),
        "SLURM_NODELIST": "localhost",
        **dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0"),
    }
    while True:
        (job / "requeue").unlink(missing_ok=True)
        with log.open("a" if options["open-mode"] == "append" else "w") as file:
            batch = subprocess.Popen(
                ["bash", str(job / "script")],
                env={**os.environ, **own, "SLURM_RESTART_COUNT": str(len(codes))},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
            (job / "batch").write_text(str(batch.pid))
            codes.append(batch.wait())
        if not ((job / "requeue").exists() and "requeue" in options and len(codes) < 5):
            break
    (job / "ended.tmp").write_text(json.dumps(codes))
    (job / "ended.tmp").rename(job / "ended")
    return 0


def srun(arguments: list[str]) -> int:
    """Start the tasks; where one fails the others are told to end (--kill-on-bad-exit). A signal outdoes any other exit code."""
    options = [word for word in arguments if word.startswith("--")][
        : next(i for i, w in enumerate(arguments) if w[:2] != "--")
    ]
    command, job = arguments[len(options) :], jobs() / os.environ["SLURM_JOB_ID"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    tasks = []
    for number in range(int(os.environ["SLURM_NTASKS"])):
        place = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "SLURM_STEP_ID": "0", "MASTER_PORT": port}
        tasks.append(subprocess.Popen(command, env={**os.environ, **place}, start_new_session=True))
    (job / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    killed = 0.0
    while None in (codes := [task.poll() for task in tasks]):
        is_bad = "--kill-on-bad-exit=1" in options and any(codes)
        if is_bad and (not killed or time.monotonic() - killed > 10):
            for task in tasks:
                if task.poll() is None:
                    task.send_signal(signal.SIGKILL if killed else signal.SIGTERM)
            killed = killed or time.monotonic()
        time.sleep(0.05)
    signals = [128 - code for code in codes if code is not None and code < 0]
    return max(signals) if signals else max(code or 0 for code in codes)


def scontrol(arguments: list[str]) -> int:
    verb, number = arguments
    assert verb == "requeue"
    (jobs() / number / "requeue").touch()
    os.killpg(int((jobs() / number / "batch").read_text()), signal.SIGKILL)
    return 0


def scancel(arguments: list[str]) -> int:
    """With a signal, of the tasks alone."""
    assert arguments[0] == "--signal=TERM"
    for task in (jobs() / arguments[1] / "tasks").read_text().split():
        os.kill(int(task), signal.SIGTERM)
    return 0


def squeue(arguments: list[str]) -> int:
    (number,) = (word.partition("=")[2] for word in arguments if word.startswith("--jobs="))
    if not (jobs() / number).exists() or (jobs() / number / "ended").exists():
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        return 1
    print("RUNNING" if (jobs() / number / "batch").exists() else "PENDING")
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
