"""What a machine has too little of, as the sentence that says what needed it and what to do: memory, shared memory, a process."""

import re

from fusionkit.errors import UserError

MEMORY = ("can't allocate memory", "out of memory", "Unable to allocate", "CUBLAS_STATUS_ALLOC_FAILED")
SHARED = ("shared memory", "bus error", "/torch_")  # in what torch says where /dev/shm is full
WITHOUT_ROOM = (
    "without exception set",
    "failed to map segment",
)  # a function in C that cannot say why it failed; a library
SIZES = (
    r"Tried to allocate ([\d.]+ [KMGTPE]iB)",
    r"Unable to allocate ([\d.]+ [KMGTPE]iB)",
    r"tried to allocate (\d+) bytes",
)
GOES_ON = "a training goes on from its last checkpoint with resume=auto"


def shortage(error: BaseException) -> UserError | None:
    """The sentence for an exception that says that there was too little of something; None for any other."""
    said = str(error)
    if isinstance(error, RuntimeError) and (worker := re.match(r"DataLoader worker \(pid(?:\(s\))? (\d+)", said)):
        return UserError(
            _of_worker(worker[1], said)
        )  # and not an error within one, which torch raises here with its trace
    if (
        isinstance(error, RuntimeError | OSError)
        and "No space left on device" in said
        and any(x in said for x in SHARED)
    ):
        return UserError(_of_worker("", SHARED[0]))
    if isinstance(error, SystemError | ImportError) and any(x in said for x in WITHOUT_ROOM):
        first = said.partition("\n")[0]  # omegaconf adds where it was
        return UserError(
            f"a library failed ({first}), as those in C do where memory runs out; let the process have more (ulimit -v, or the "
            f"limit of the job or container); {GOES_ON}"
        )
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and any(x in said for x in MEMORY)):
        return None
    sizes = (found[1] for each in SIZES if (found := re.search(each, said)))
    size, part = next((f", which asked for {_written(each)}" for each in sizes), ""), _part(error)
    return UserError(
        f"memory ran out{f' in {part}' if part else ''}{size}; what costs least in a training: half of "
        "data.sources.NAME.batch_size with trainer.accumulate_grad_batches=2, then activation_checkpointing=true, then "
        "trainer.precision=bf16-mixed where the device is fast at it; fusionkit plan with the same options says what takes how "
        f"much, and {GOES_ON}"
    )


def _of_worker(number: str, said: str) -> str:
    who = f"a process that makes batches{f' (process {number})' if number else ''}"
    if any(word in said.lower() for word in SHARED):
        return (
            f"{who} found no room in /dev/shm, through which batches come; make it larger (docker run --shm-size=8g), or set "
            f"data.num_workers=0; {GOES_ON}"
        )
    return (
        f"{who} was killed, as the system does where memory runs out; lower data.num_workers (0: batches are made by the process "
        f"that trains) or data.sources.NAME.batch_size; {GOES_ON}"
    )


def _part(error: BaseException) -> str:
    """The class of the innermost part of a model, not one of torch's own, that was at work."""
    found, frame = "", error.__traceback__
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        if hasattr(owner, "named_parameters") and not type(owner).__module__.startswith("torch."):
            found = type(owner).__name__
        frame = frame.tb_next
    return found


def _written(size: str) -> str:
    if not size.isdecimal():
        return size
    number = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"
