"""Length against accuracy, from judged rows alone: what an answer costs, and what it would be at another length."""
