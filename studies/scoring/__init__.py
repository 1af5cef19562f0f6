"""Scores of contributions, attacks on them and ratings, computed from recorded inner products of short trainings."""
