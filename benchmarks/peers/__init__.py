"""Side-by-side bench of potentials: same data, same loop, same budget. See README.md."""
