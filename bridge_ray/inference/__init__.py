"""Local generation and embedding: Ray Data actor pools around vLLM, and the models they serve."""
