"""Training the TA (LoRA) and the student: one DeepSpeed loop in Ray Train, fed by a curriculum that is data."""
