"""Side-by-side measures against peers: `python -m benchmarks NAME --json PATH`."""
