"""What more budget or more corpus would bring, and how much direct distillation would have to buy: fits to a frontier.

A diagnostic: it extrapolates a few measured sizes, and says so where that fails on sizes that it did not see.
"""
