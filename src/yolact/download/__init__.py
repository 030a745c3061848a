"""Everything that touches the network, and nothing else."""
