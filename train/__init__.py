"""What is run to train: `python -m train.prepare`, then `python -m train.run`."""
