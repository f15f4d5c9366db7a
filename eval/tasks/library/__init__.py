"""Tasks by name: every module here is one. docs/eval.md shows how to write another."""
