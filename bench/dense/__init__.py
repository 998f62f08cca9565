"""The dense model: where it is found, fetched or fine-tuned, and how it is loaded."""
