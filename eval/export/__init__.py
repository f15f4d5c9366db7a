"""An eval run in the formats of other harnesses. Each module makes files out of what `evaluation.read` found."""
