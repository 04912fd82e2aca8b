"""What each rank of a job does: training, evaluation."""
