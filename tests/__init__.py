"""The tests, and how often Python looks for garbage while they run.

By default it looks through objects, of which the libraries have many, whenever 700 are new.
"""

import gc

gc.set_threshold(50_000, 20, 20)
