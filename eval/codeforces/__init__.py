"""A model's Codeforces rating and percentile, from saved contest files and its judged tries; docs/codeforces.md."""
