"""The tests, and how often Python looks for garbage while they run.

By default it looks through objects, of which the libraries have a million, whenever 700 are new: a tenth of the time of
an export, and of the time to import torch.
"""

import gc

gc.set_threshold(50_000, 20, 20)
