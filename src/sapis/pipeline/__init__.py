"""From a recipe to a validated potential: the steps, their records, and resuming."""
