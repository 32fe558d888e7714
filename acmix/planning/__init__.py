"""What a plan is made of: sizes of a step on fake tensors, advice about them, and why a model cannot be had."""
