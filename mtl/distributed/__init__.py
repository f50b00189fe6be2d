"""Several processes: ranks, collectives, data parallelism and sharding, under the names of torch.distributed."""
