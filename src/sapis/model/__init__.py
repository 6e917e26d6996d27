"""The equivariant Transformer: mathematics only, no files and no processes."""
