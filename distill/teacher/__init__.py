"""Teachers: whatever answers a problem with its reasoning written out."""
