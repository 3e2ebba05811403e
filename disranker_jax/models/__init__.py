"""Networks and their families, Hugging Face folders in and out, where weights come from."""
