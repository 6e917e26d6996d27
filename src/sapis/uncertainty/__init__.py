"""How sure a potential is of what it says, and how well that can be trusted."""
