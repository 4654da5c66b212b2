"""Meet the processes that torchrun has started beside this one."""

import os
import shutil
import tempfile
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket

import torch
import torch.distributed as dist

from streamproc.engine.gpu.links import Followers, Leader, Link
from streamproc.engine.gpu.parallel import ALONE, Ranks
from streamproc.errors import Unavailable, Usage, one_line

MEETING = timedelta(seconds=120)
COLLECTIVE = timedelta(minutes=10)      # kernels may be compiled meanwhile; a process that dies is noticed at once


def meet() -> Ranks:
    """This process among those that torchrun has started; ALONE where it has not.

    Raises Usage or Unavailable, in one line.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if int(os.environ.get("LOCAL_WORLD_SIZE", size)) != size:
        raise Usage(f"torchrun: {size} processes on several machines; those of one model share one: use --nnodes 1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Where a graph is captured, NCCL would tell all processes of its buffers; one that lacks memory captures none.
    os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=COLLECTIVE)
        rank = dist.get_rank()
        return Ranks(0, size, Followers(_listen(size))) if rank == 0 else Ranks(rank, size, leader=Leader(_connect()))
    except (RuntimeError, OSError) as problem:
        raise Unavailable(f"the {size} processes of torchrun do not meet: {one_line(problem)}") from problem


def part() -> None:
    """After `meet`, at the end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _listen(size: int) -> list[Link]:
    """The first process: one link to each of the others, in their order."""
    folder = Path(tempfile.mkdtemp(prefix="streamproc-"))       # nobody else may look into it
    links: dict[int, Link] = {}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = stack.enter_context(socket(AF_UNIX, SOCK_STREAM))
        server.settimeout(MEETING.total_seconds())
        server.bind(str(folder / "socket"))
        server.listen(size)
        dist.broadcast_object_list([str(folder / "socket")], 0)
        while len(links) < size - 1:
            connection, _ = server.accept()
            connection.settimeout(None)
            link = Link(connection)
            links[next(link.messages())] = link
    return [links[rank] for rank in range(1, size)]


def _connect() -> Link:
    """Another process: its link to the first."""
    box: list[str] = [""]
    dist.broadcast_object_list(box, 0)
    connection = socket(AF_UNIX, SOCK_STREAM)
    connection.connect(box[0])
    link = Link(connection)
    link.send(dist.get_rank())
    return link
