"""Starting and watching jobs: the driver's process, mpirun, ranks, SLURM, sweeps."""
