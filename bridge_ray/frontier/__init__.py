"""The frontier: accuracy against spend, for BRIDGE and everything that it is to be compared with.

``systems`` says what is compared, ``grid`` at which budgets, sizes and seeds, ``run`` does the work and keeps each
cell's answers, and ``summary`` says how sure it all is.
"""
