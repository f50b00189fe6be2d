"""Runs functions in real processes that communicate over gloo on the loopback interface."""

import os
import pickle
import socket
import traceback

import torch
from support.processes import server

from mtl.distributed.ranks import process_group


def run_ranks(count, function, *arguments, seconds=300):
    """Call ``function(*arguments)`` on ``count`` ranks; returns their results, or raises with the traceback of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = server()
    answers = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, count, port, answers, function, arguments)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    results = {}
    try:
        for _ in processes:
            rank, error, result = answers.get(timeout=seconds)
            assert error is None, f"rank {rank}:\n{error}"
            results[rank] = pickle.loads(result)
        for process in processes:
            process.join(seconds)
    finally:
        for process in processes:
            process.kill()
    return [results[rank] for rank in range(count)]


def _rank(rank, count, port, answers, function, arguments):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    try:
        with process_group():
            answers.put((rank, None, pickle.dumps(function(*arguments))))  # bytes: torch would share memory
    except BaseException:
        answers.put((rank, traceback.format_exc(), None))
