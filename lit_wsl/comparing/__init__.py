"""Compare two models tensor by tensor, and take the adapter out of a fine-tuned one."""
