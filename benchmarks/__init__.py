"""Time and memory of the losses and of whole training steps, ours and the peers' side by side: `make bench`."""
