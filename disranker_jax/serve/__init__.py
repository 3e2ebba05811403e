"""The student behind HTTP: one scorer, the request shapes that clients of rerankers speak."""
