"""What every potential must obey, shipped so that any potential can be put to it in three lines."""
