"""Two-layer samples from captioned photographs (paper, "Data"), a stage a module; the command is `train.synthesize`."""
