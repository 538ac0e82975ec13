"""Experiments that answer a question with a table, a plot and the numbers behind them."""
