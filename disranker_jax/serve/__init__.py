"""An exported model behind HTTP, with the rerank APIs that existing clients speak."""
