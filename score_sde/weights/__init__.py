"""Published weights: readers, a writer, and the command `python -m score_sde.weights`.

A file is opened (`opening`: which format, which tensors), given a config (`conventions`: from what it says, or from a
file under configs/), and its tensors are matched with those of the U-Net that the config means (`parts`, `naming`,
`unet2d`).  Nothing in a file is ever executed (`pickles`).
"""
