"""Many runs of `fedgpt2 simulate`, one a cell of a table: what robustness.py and ranking_arena.py share."""
