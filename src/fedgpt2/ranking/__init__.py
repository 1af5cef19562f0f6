"""Who helped, how we know, and what it is worth: pure functions of the evidence in the ledger."""
