"""Reference energies and forces: labelers, their cache, and the processes that run them."""
