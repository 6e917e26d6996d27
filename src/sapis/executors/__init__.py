"""Work in other processes, here or on a cluster: limits, retries, and failures as values."""
