"""What more than one process needs, under torch.distributed's own names."""
