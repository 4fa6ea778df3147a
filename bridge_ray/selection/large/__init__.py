"""Selection from a corpus that is too large for one process: in partitions on Ray, in bounded memory.

Read in this order: ``run`` (the steps), ``frame`` (centre and partitions), ``deal`` (rows to their partitions,
near-duplicates merged), ``links`` (the neighbour graph across partitions), ``rounds`` (rank within partitions, then
among the winners), ``measure`` (who covers what, and how far everything is from what was chosen). ``files`` holds what
passes between steps; the driver passes locations and counts only.

Greedy in partitions and then among their winners is GreeDi (Mirzasoleiman et al. 2013, 1411.0541). Partitions here are
clusters and not drawn at random, and a row's gain counts its neighbours in other partitions: that is ours.
"""
