"""Reference energies and forces: labelers, their cache, and labels into stores."""
