"""Which questions are worth a teacher's time: difficulty, position in embedding space, and a ranking of both.

Read in this order: ``entropy`` (difficulty), ``neighbours`` (geometry), ``lazy_greedy`` (the optimiser),
``strategies`` (one small file each), ``rank`` (the whole selection), ``describe`` (what it came to).
"""
