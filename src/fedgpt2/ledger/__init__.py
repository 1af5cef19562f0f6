"""What survives: the ledger (the only commit point), checkpoints named by it, and rounds.jsonl derived from it."""
