"""Many models that differ in betas, targets or seed: which there are, who trains them, their table."""
